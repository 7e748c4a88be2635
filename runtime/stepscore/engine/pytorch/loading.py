"""Load transformers models into PyTorch, with errors that name what is missing."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

from stepscore.errors import ModelInvalid, ProviderUnavailable, UnsupportedArchitecture


class Device(enum.StrEnum):
    """Device that PyTorch runs on; `auto` is a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def require(*packages: str) -> None:
    """Import the packages; raise ProviderUnavailable naming the first that cannot be imported."""
    for name in packages:
        try:
            import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            raise ProviderUnavailable(
                f"{name} is not installed" if absent else f"{name} cannot be imported: {error}",
                hint="pip install 'stepscore[torch]'",
            ) from None


def resolve(device: Device, option: str = "--device") -> Device:
    """Return cpu or cuda; raise ProviderUnavailable for cuda where PyTorch finds no GPU."""
    import torch

    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise ProviderUnavailable(
            f"torch {torch.__version__} finds no CUDA device", hint=f"use {option} cpu or {option} auto"
        )
    if device is Device.AUTO:
        return Device.CUDA if available else Device.CPU
    return device


def configuration(settings: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of `model_type` with these settings, which must have been checked.

    Nothing is read from a folder. Raises UnsupportedArchitecture where this version of transformers has no
    such model.
    """
    from transformers import AutoConfig, __version__

    try:
        return AutoConfig.for_model(**deepcopy(dict(settings)))  # transformers 5 adds keys to nested ones
    except Exception as error:  # transformers 5 has a class of errors that is no ValueError
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UnsupportedArchitecture(
            f"transformers {__version__} rejects a model of type {settings['model_type']!r}: {said[:300]}",
            hint="pip install --upgrade 'stepscore[torch]'; --format onnx needs no transformers",
        ) from error


def from_pretrained(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    dtype: torch.dtype | Literal["auto"],
    attention: str = "sdpa",
    device_map: dict[str, str] | None = None,
    quantization: Any = None,
) -> Any:
    """Load the weights in `folder`, which must have been checked, for inference; never run code from it.

    `settings` is the model's configuration (`configuration`): transformers does not read config.json. `dtype`
    "auto" is that of the settings, `quantization` transformers' configuration of quantizing on load. Raises
    ModelInvalid for tensors that are missing or left over, which transformers would draw at random or ignore.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if (folder / "adapter_config.json").exists():  # with peft installed, transformers would apply it
        raise UnsupportedArchitecture(
            f"{folder} contains an adapter (adapter_config.json) in addition to the model",
            hint="merge it into the model, or move it out of the folder",
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        config=configuration(settings),
        dtype=dtype,
        attn_implementation=attention,
        device_map=device_map,
        quantization_config=quantization,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[kind]:
            first, state = min(map(str, loaded[kind])), kind.partition("_")[0]
            raise ModelInvalid(
                f"{folder.name}: {len(loaded[kind])} tensors are {state}, such as {first[:100]}",
                hint="export the pair again, or download the checkpoint again",
            )
    return model.eval()


@contextmanager
def memory_errors(device: Device, hint: str) -> Iterator[None]:
    """Raise ProviderUnavailable where PyTorch runs out of memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ProviderUnavailable(
            f"out of memory on {device}: {str(error).partition('. ')[0]}",
            hint=hint,
        ) from None

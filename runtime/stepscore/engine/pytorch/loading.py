"""Load transformers models into PyTorch, with errors that name what is missing."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

from stepscore.artifact.manifest import CONFIG
from stepscore.errors import (
    CheckpointUnsafe,
    ModelInvalid,
    ProviderUnavailable,
    UnsupportedArchitecture,
)


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


def from_pretrained(
    folder: Path,
    *,
    dtype: torch.dtype | Literal["auto"],
    attention: str = "sdpa",
    device_map: dict[str, str] | None = None,
    quantization: Any = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """Load the model in `folder`, which must have been checked, for inference; never run code from it.

    `dtype` "auto" is the stored type. `quantization` is transformers' configuration of quantizing on load,
    `config` the model's, by default that in config.json. Raises ModelInvalid for tensors that are missing or
    left over, which transformers would draw at random or ignore.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    if (folder / "adapter_config.json").exists():  # with peft installed, transformers would apply it
        raise UnsupportedArchitecture(
            f"{folder} contains an adapter (adapter_config.json) in addition to the model",
            hint="merge it into the model, or move it out of the folder",
        )
    if config is None:
        refuse_kernels(folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, loaded = Qwen2ForCausalLM.from_pretrained(
        folder,
        config=None if config is None else Qwen2Config(**config),
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


def refuse_kernels(folder: Path) -> None:
    """Refuse attention by the name of a repository: transformers before 5.3 would download and run its code.

    A configuration can name it for the model or for a part of it (CVE-2026-4372).
    """
    waiting: list[object] = [json.loads((folder / CONFIG).read_text(encoding="utf-8"))]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        for key, named in value.items():
            if "attn_implementation" in key and "/" in str(named):
                raise CheckpointUnsafe(
                    f"config.json: {key} is {str(named)[:100]!r}, which would be downloaded and run",
                    hint="remove the key",
                )


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

"""PyTorch models, loaded with errors that name what is missing."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

from stepscore.errors import ProviderUnavailable, UnsupportedArchitecture


class Device(enum.StrEnum):
    """Where PyTorch runs; `auto` is a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def require(*packages: str) -> None:
    """Import the packages, or raise ProviderUnavailable naming the first that cannot be."""
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
    """Return cpu or cuda; raise ProviderUnavailable where PyTorch finds no GPU for the latter."""
    import torch

    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise ProviderUnavailable(
            f"torch {torch.__version__} finds no CUDA device here", hint=f"take {option} cpu, or auto"
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
) -> Any:
    """Load the model in `folder`, which must have been checked, for inference; no code comes with it.

    `dtype` "auto" is what it is stored in. `quantization` quantises it on the way.
    """
    from transformers import Qwen2ForCausalLM
    from transformers.utils import logging

    if (folder / "adapter_config.json").exists():  # with peft installed another model would be loaded
        raise UnsupportedArchitecture(
            f"{folder} holds an adapter (adapter_config.json) beside the model",
            hint="merge it, or move it out of the folder",
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return Qwen2ForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        device_map=device_map,
        quantization_config=quantization,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    ).eval()


@contextmanager
def memory_errors(device: Device, hint: str) -> Iterator[None]:
    """Raise ProviderUnavailable in place of PyTorch's own error where the memory is too small."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ProviderUnavailable(
            f"the memory of {device} is too small for PyTorch: {str(error).partition('. ')[0]}",
            hint=hint,
        ) from None

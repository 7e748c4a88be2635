"""Extras of the package: which one has a library that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stepscore.errors import ExtraMissing, ProviderUnavailable, StepscoreError

_LIBRARIES = {
    "data": ("pyarrow",),
    "export": ("huggingface_hub", "jinja2", "ml_dtypes", "onnx", "onnx_ir", "safetensors", "threadpoolctl"),
    "optimum": ("optimum",),
    "plots": ("matplotlib",),
    "ray": ("ray",),
    "select": ("math_verify",),
    "server": ("prometheus_client", "starlette", "uvicorn"),
    "torch": ("accelerate", "bitsandbytes", "torch", "transformers"),
    "tracing": ("opentelemetry",),
}
_EXTRA_OF = {library: extra for extra, libraries in _LIBRARIES.items() for library in libraries}


def missing_extra(error: ModuleNotFoundError) -> StepscoreError | None:
    """Return the error that names the extra of a library that is not installed; None for no such library.

    >>> missing_extra(ModuleNotFoundError(name="onnx_ir")).hint
    "pip install 'stepscore[export]'"
    """
    library = (error.name or "").partition(".")[0]
    if library == "onnxruntime":
        return ProviderUnavailable(
            "onnxruntime is not installed",
            hint="pip install 'stepscore[cpu]', or 'stepscore[cuda]' on a machine with an NVIDIA GPU",
        )
    if library in _EXTRA_OF:
        return ExtraMissing(
            f"{library} is not installed", hint=f"pip install 'stepscore[{_EXTRA_OF[library]}]'"
        )
    return None


@contextmanager
def naming_extras() -> Iterator[None]:
    """Raise ProviderUnavailable or ExtraMissing where the library of an extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        fault = missing_extra(error)
        if fault is None:
            raise
        raise fault from None

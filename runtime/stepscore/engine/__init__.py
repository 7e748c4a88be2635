"""Engines: run packed batches through both models of a pair, and return log-probs."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.enums import Format, Provider
from stepscore.errors import StepscoreError
from stepscore.extras import naming_extras

if TYPE_CHECKING:
    from stepscore.artifact.manifest import Manifest
    from stepscore.artifact.pair import Pair
    from stepscore.engine.base import Engine, EngineOptions

ENGINE_GROUP = "stepscore.engines"
"""Entry point group in which another package registers its engine for a format, by the format's name."""


def open_engine(pair: Pair, options: EngineOptions | None = None) -> Engine:
    """Open a pair in the engine of its format; raise ProviderUnavailable where that does not run here."""
    with naming_extras():
        return engine_of(pair.manifest)(pair, options)


def engine_of(manifest: Manifest) -> type[Engine]:
    """Return the engine of a pair: the one registered for its format by another package, else a built-in one.

    It is imported only here, so that a pair needs the library of its own engine and no other.
    """
    for registered in entry_points(group=ENGINE_GROUP, name=manifest.format.value):
        engine: type[Engine] = registered.load()
        return engine
    match manifest.format:
        case Format.ONNX if uses_generic_graphs(manifest):
            from stepscore.engine.cuda.engine import CudaEngine  # noqa: PLC0415

            return CudaEngine
        case Format.ONNX:
            from stepscore.engine.ort.engine import OrtEngine  # noqa: PLC0415

            return OrtEngine
        case Format.BITSANDBYTES:
            from stepscore.engine.pytorch.engine import TorchEngine  # noqa: PLC0415

            return TorchEngine


def free_memory(pair: Pair, provider: Provider) -> int | None:
    """Return the free memory of the GPU that a pair for CUDA runs on; None on the CPU, or where unknown."""
    if provider is Provider.CPU or not uses_generic_graphs(pair.manifest):
        return None
    from stepscore.engine.cuda.cudart import CudaRuntime  # noqa: PLC0415

    with suppress(StepscoreError):  # opening the engine says what is missing
        return CudaRuntime.load().free_bytes()
    return None

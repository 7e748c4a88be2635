"""Engines: run packed batches through both models of a pair, and return log-probs."""

from __future__ import annotations

from stepscore.artifact.pair import Pair
from stepscore.engine.base import Engine, EngineOptions
from stepscore.enums import Format


def open_engine(pair: Pair, options: EngineOptions | None = None) -> Engine:
    """Open a pair in the engine of its format; raise ProviderUnavailable where that does not run here."""
    return engine_of(pair.manifest.format)(pair, options)


def engine_of(of_format: Format) -> type[Engine]:
    """Return the engine of a format. Each is imported only here: it needs its own library, and no other's."""
    match of_format:
        case Format.ONNX:
            from stepscore.engine.ort.engine import OrtEngine  # noqa: PLC0415

            return OrtEngine
        case Format.BITSANDBYTES:
            from stepscore.engine.pytorch.engine import TorchEngine  # noqa: PLC0415

            return TorchEngine

"""One window through an ONNX Runtime engine that is opened for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.engine.base import EngineOptions, PairLogprobs
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Residency


def run(pair: Pair, window: Sequence[Batch], residency: Residency, **options: Any) -> list[PairLogprobs]:
    """Return the log-probs of every batch; the engine is closed again."""
    engine = OrtEngine(pair, EngineOptions(residency=residency, **options))
    results = list(engine.run(window))
    engine.close()
    return results

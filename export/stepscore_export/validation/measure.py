"""Measures the fidelity of a staged pair: its rewards against both checkpoints in fp32, on the same text.

The runtime runs the pair, one layer at a time where it supports that; so are the checkpoints run
(reference/layerwise_fp32.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import Fidelity
from stepscore.artifact.pair import Pair
from stepscore.batching.planner import plan
from stepscore.errors import SelftestFailed
from stepscore.prompt.encoder import EncodedPrompt
from stepscore.system import give_back_memory
from stepscore_export.backends.base import Progress
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.fidelity import FidelityMetrics, Scores, as_float64, fidelity
from stepscore_export.reference.layerwise_fp32 import BATCH_ROWS, fp32_logprobs
from stepscore_export.staging import Stage
from stepscore_export.validation.selftest import lean_engine


@dataclass(frozen=True, slots=True)
class Trial:
    """Encoded texts, and the log-probs that the checkpoints give them."""

    name: str
    prompts: Sequence[EncodedPrompt]
    truth: Scores

    def measure_fidelity(self, pair: Pair) -> Fidelity:
        """Score the texts with the pair and compare; SelftestFailed where a log-prob is not finite."""
        sequences = [prompt.token_ids for prompt in self.prompts]
        scores = as_float64(_lean_logprobs(pair, sequences))
        if not all(np.isfinite(values).all() for each in scores for values in each):
            raise SelftestFailed(
                "the staged pair gives log-probs that are NaN or infinite", hint="use another --precision"
            )
        return rounded(fidelity(scores, self.truth, [prompt.step_ends for prompt in self.prompts]), self.name)


def _lean_logprobs(
    pair: Pair, sequences: Sequence[NDArray[np.int64]]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    engine = lean_engine(pair)
    groups = plan(sequences, [0] * len(sequences), BATCH_ROWS, given=engine.given)
    scores = {
        member: (logprobs["policy"][pairs], logprobs["reference"][pairs])
        for group, logprobs in zip(groups, engine.run([group.batch for group in groups]), strict=True)
        for member, pairs in zip(group.members, group.batch.target_of, strict=True)
    }
    return [scores[index] for index in range(len(scores))]


def rounded(metrics: FidelityMetrics, data: str) -> Fidelity:
    """Return what a manifest keeps: four significant digits, no value where the error is infinite.

    With four digits manifests are equal on most machines, although their sums differ in the last bits.
    """
    kept = {name: getattr(metrics, name) for name in Fidelity.__struct_fields__ if name != "data"}
    return msgspec.convert({"data": data} | {name: _digits(value) for name, value in kept.items()}, Fidelity)


def _digits(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def measure(
    staged: Stage, checkpoints: Members, name: str, prompts: Sequence[EncodedPrompt], progress: Progress
) -> Fidelity | None:
    """Score the texts with the checkpoints and the staged pair; None where no bundled text fits the model."""
    if not prompts:
        return None
    progress("running both checkpoints in fp32", 0)
    sequences = [prompt.token_ids for prompt in prompts]
    truth = fp32_logprobs(checkpoints["policy"], checkpoints["reference"], sequences)
    progress("measuring the fidelity of the pair", 0)
    give_back_memory()
    return Trial(name, prompts, truth).measure_fidelity(Pair.open(staged.folder))

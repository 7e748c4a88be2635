"""Log-probs of planned sequences: those that each has alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from testing.checkpoints import TINY
from testing.forms import INTEGER
from testing.hypothesis_profiles import examples
from testing.pairs import PairOf
from testing.windows import BUDGETS, Ids, small_limits, windows

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.batching.planner import plan
from stepscore.engine.base import Engine
from stepscore.engine.ort.engine import OrtEngine

Floats = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _small_limits() -> Iterator[None]:
    with small_limits():
        yield


def scored_together_and_alone(
    engine: Engine, drawn: tuple[list[Ids], list[int]], budget: int
) -> Iterator[tuple[Floats, Floats]]:
    """Log-probs [2, L-1] of each sequence, planned with the others and packed by itself."""
    groups = plan(*drawn, budget)
    for group, logprobs in zip(groups, engine.run([group.batch for group in groups]), strict=True):
        for member, pairs in zip(group.members, group.batch.target_of, strict=True):
            (alone,) = engine.run([pack([drawn[0][member]], [drawn[1][member]])])
            yield (
                np.stack([logprobs["policy"][pairs], logprobs["reference"][pairs]]),
                np.stack([alone["policy"], alone["reference"]]),
            )


@examples(50)
@given(windows(), BUDGETS)
def test_planned_sequence_has_its_logprobs_alone(
    tiny_engine: Engine, drawn: tuple[list[Ids], list[int]], budget: int
) -> None:
    for together, alone in scored_together_and_alone(tiny_engine, drawn, budget):
        assert np.abs(together - alone).max() < 1e-5


@pytest.mark.slow
def test_planned_logprobs_with_int8_activations_stay_within_the_pairs_error(pair_of: PairOf) -> None:
    """A row that is an ulp apart may round to the next code."""
    pair = Pair.open(pair_of.measured.form(INTEGER))
    fidelity = pair.manifest.fidelity
    assert fidelity is not None
    assert fidelity.ratio_error is not None
    tokens = np.random.default_rng(3).integers(0, TINY.vocab_size, (12, 40))
    tokens[1:8, :30] = tokens[0, :30]  # samples of one problem
    window = [
        row[:length]
        for row, length in zip(tokens, (40, 35, 40, 30, 20, 40, 33, 38, 9, 40, 2, 17), strict=True)
    ]
    engine = OrtEngine(pair)
    scores = zip(*scored_together_and_alone(engine, (window, [0] * 12), 150), strict=True)
    together, alone = (np.concatenate([each[0] - each[1] for each in some]) for some in scores)
    engine.close()
    assert rms(together - alone) < fidelity.ratio_error * rms(alone)


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))

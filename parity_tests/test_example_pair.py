"""The bundled pair, which means something: how near each model alone comes, in numbers and in decisions.

Random weights cannot tell: their policy is the reference plus noise, and rounding is noise of the same kind.
Coded pairs: test_bounds.py; the whole table: `python -m benchmarks.fidelity`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from parity_tests.support.bundled_pair import EXAMPLE, PROBLEMS, Problems, fp64_threshold
from parity_tests.support.fp64_reference import Numerics, pair_logprobs
from parity_tests.support.pair_cache import Workshop, scored
from parity_tests.support.storage_forms import BF16, FP16, FP32, INT4, INT8, Storage

from stepscore_export.fidelity import FidelityMetrics, Scores, fidelity

NUM_PROBLEMS = 80


@dataclass(frozen=True)
class Bounds:
    """What a precision may cost: about twice what was first measured on these problems.

    Errors are those of rounding the weights alone (test_parity shows that nothing else is rounded). At fp16
    that is a quarter of PyTorch's, whose activations are rounded as well; 8 times more at bf16, which has 3
    bits less; 23 times more at int8, whose step is 1/128 of its block's maximum; five times that again at
    int4, whose embedding and head stay at 8 bits. Signs flip where a step's reward is nearly 0.
    """

    logprob_rms: float
    ratio_error: float
    step_signs: float
    first_errors: float

    def hold(self, measured: FidelityMetrics) -> bool:
        return (
            measured.logprob_rms <= self.logprob_rms
            and measured.ratio_error <= self.ratio_error
            and measured.step_signs >= self.step_signs
            and measured.first_errors >= self.first_errors
        )


AGAINST_FP64 = {  # measured: rms, log-ratio, signs, first errors
    FP16: Bounds(7e-4, 0.006, 0.98, 0.97),  # 3.2e-4, 0.26 %, 100.0 %, 100.0 %
    BF16: Bounds(5e-3, 0.05, 0.96, 0.97),  # 2.3e-3, 2.25 %, 98.9 %, 100.0 %
    INT8: Bounds(1.3e-2, 0.12, 0.93, 0.95),  # 6.3e-3, 6.07 %, 96.7 %, 100.0 %
    INT4: Bounds(1.3e-1, 0.60, 0.80, 0.85),  # 6.5e-2, 31.7 %, 90.0 %, 92.5 %
}
# PyTorch fp16 is itself 1.1e-3 nats and 0.95 % from fp64: that much more is allowed against it.
AGAINST_PYTORCH_FP16 = {
    storage: replace(b, logprob_rms=b.logprob_rms + 2.2e-3, ratio_error=b.ratio_error + 0.02)
    for storage, b in AGAINST_FP64.items()
}


class Example:
    """Some test problems, scored in fp64 and in PyTorch fp16, and the threshold of the other split."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._models = workshop.models(EXAMPLE)
        self.problems = Problems.read(PROBLEMS, self._models, NUM_PROBLEMS)
        self.threshold = fp64_threshold(self._models, NUM_PROBLEMS)
        self.truth, self.pytorch_fp16 = (
            pair_logprobs(self._models.policy, self._models.reference, self.problems.ids, numerics)
            for numerics in (Numerics.FP64, Numerics.PYTORCH_FP16)
        )

    def scores(self, storage: Storage) -> Scores:
        return scored(self._workshop.engine(self._models, storage.options), self.problems.ids)

    def fidelity(self, scores: Scores, truth: Scores) -> FidelityMetrics:
        return fidelity(scores, truth, self.problems.step_ends, self.threshold)


@pytest.fixture(scope="module")
def example(workshop: Workshop) -> Example:
    return Example(workshop)


def each(bounds: dict[Storage, Bounds]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("storage", "bounds"), bounds.items(), ids=[storage.name for storage in bounds]
    )


def test_fp32_is_within_1e_4_nats_of_float64(example: Example) -> None:
    assert example.fidelity(example.scores(FP32), example.truth).logprob_max <= 1e-4


def test_fp32_takes_every_decision_of_float64(example: Example) -> None:
    result = example.fidelity(example.scores(FP32), example.truth)
    assert (result.step_signs, result.first_errors) == (1.0, 1.0)


@each(AGAINST_FP64)
def test_a_lower_precision_stays_within_its_bounds_of_float64(
    example: Example, storage: Storage, bounds: Bounds
) -> None:
    measured = example.fidelity(example.scores(storage), example.truth)
    assert bounds.hold(measured), measured


@each(AGAINST_PYTORCH_FP16)
def test_a_lower_precision_stays_within_its_bounds_of_pytorch_fp16(
    example: Example, storage: Storage, bounds: Bounds
) -> None:
    measured = example.fidelity(example.scores(storage), example.pytorch_fp16)
    assert bounds.hold(measured), measured


def test_fp16_storage_is_nearer_to_float64_than_a_pytorch_fp16_pair(example: Example) -> None:
    ours = example.fidelity(example.scores(FP16), example.truth)
    theirs = example.fidelity(example.pytorch_fp16, example.truth)
    assert ours.logprob_rms < theirs.logprob_rms
    assert ours.ratio_error < theirs.ratio_error

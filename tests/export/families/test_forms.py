"""Pairs of every family in every form against a numpy forward pass, with the prefix as given rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from testing.checkpoints import write_checkpoint
from testing.cuda_forms import CUDA_FORMS, LOSSLESS
from testing.families import FAMILY_SHAPES
from testing.forms import INTEGER, MERGED, SEPARATE
from testing.pairs import Checkpoints, PairOf
from testing.shared_folder import SharedFolder

from stepscore.artifact.pair import Pair
from stepscore.engine import open_engine
from stepscore.engine.base import EngineOptions
from stepscore.enums import Coding, Precision, Provider, Residency
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.options import ExportOptions
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

LENGTHS = (5, 40, 200)
"""The last one is beyond the original length of every scaled RoPE here, and begins with the prefix."""


@dataclass(frozen=True)
class Form:
    """A form of storage; the largest RMS error of log-probs (nats), and relative of log-ratios."""

    options: ExportOptions
    logprobs: float
    ratios: float


def alone(precision: Precision, logprobs: float, ratios: float) -> Form:
    return Form(ExportOptions(precision, coding=Coding.INDEPENDENT), logprobs, ratios)


# Errors of the tiny Qwen2 pair, and half as much again.
FP32 = alone(Precision.FP32, 5e-6, 1e-4)
INT8_ACTIVATIONS = Form(INTEGER, 0.03, 0.05)
CUDA_FP16 = Form(CUDA_FORMS["fp16"][0], 0.0012, 0.04)
CUDA_CODED = Form(CUDA_FORMS["int8-int4"][0], 0.02, 0.09)
FORMS = {
    "fp32": FP32,
    "fp16": alone(Precision.FP16, 0.001, 0.03),
    "bf16": alone(Precision.BF16, 0.008, 0.25),
    "int8": alone(Precision.INT8, 0.025, 0.8),
    "int4": alone(Precision.INT4, 0.35, 4.0),
    "int8-activations": INT8_ACTIVATIONS,
    "int8-int4": Form(MERGED[Precision.INT8], 0.02, 0.09),
    "int4-int4": Form(SEPARATE[Precision.INT4], 0.18, 0.25),
    "int4-rotated": Form(replace(MERGED[Precision.INT4], rotation=True), 0.18, 0.25),
    "cuda-fp16": CUDA_FP16,
    "cuda-int8-int4": CUDA_CODED,
    "cuda-rotated": Form(CUDA_FORMS["rotated"][0], 0.02, 0.09),
}
# What a form does to q/k norms and a head size of its own it does to no other trait: one family has all.
CASES = [
    *(("qwen3", form) for form in FORMS),
    *((family, form) for family in ("llama3", "qwen2-yarn") for form in ("fp32", "int8-activations")),
    *((family, "cuda-fp16") for family in ("llama3", "qwen2-yarn")),
    *(("llama3-tied", form) for form in ("fp32", "cuda-int8-int4")),
]


class Models:
    """Random checkpoints of each family, their pairs, and what the numpy forward pass says of them."""

    def __init__(self, shared: SharedFolder) -> None:
        self._shared = shared
        self.truth = cache(self._truth)

    def checkpoints(self, family: str) -> Checkpoints:
        shape = FAMILY_SHAPES[family]
        return Checkpoints.at(
            self._shared.once(f"family-{family}", lambda folder: Checkpoints.write(folder, shape))
        )

    def pair(self, family: str, options: ExportOptions) -> Path:
        return PairOf(self.checkpoints(family), self._shared).form(options)

    def _truth(self, family: str) -> NDArray[np.float64]:
        """Log-probs of policy and reference, [2, tokens]."""
        sequences = self.sequences(family)
        checkpoints = self.checkpoints(family)
        return np.stack(
            [truth_of(folder, sequences) for folder in (checkpoints.policy, checkpoints.reference)]
        )

    def sequences(self, family: str) -> list[NDArray[np.int64]]:
        prefix = Pair.open(self.pair(family, FP32.options)).prefix()
        assert prefix is not None
        random = np.random.default_rng(5)
        *sequences, last = (random.integers(0, 320, length) for length in LENGTHS)
        last[: len(prefix.token_ids)] = prefix.token_ids
        return [*sequences, last]


def truth_of(folder: Path, sequences: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    with Checkpoint.open(folder) as checkpoint:
        return np.concatenate([hidden_and_logprobs(checkpoint, each)[1] for each in sequences])


@pytest.fixture(scope="module")
def models(shared_folder: SharedFolder) -> Models:
    return Models(shared_folder)


def logprobs(
    pair: Path, sequences: list[NDArray[np.int64]], residency: Residency = Residency.RESIDENT
) -> NDArray[np.float32]:
    engine = open_engine(Pair.open(pair), EngineOptions(provider=Provider.CPU, residency=residency))
    scores = engine.logprobs(sequences)
    engine.close()
    return np.concatenate([np.stack(each) for each in scores], axis=1)


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def relative_error(found: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    ratios, true_ratios = found[0] - found[1], truth[0] - truth[1]
    return rms(ratios - true_ratios) / rms(true_ratios)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_each_family_scores_within_the_error_of_its_form(models: Models, family: str, form: str) -> None:
    expected, truth = FORMS[form], models.truth(family)
    found = logprobs(models.pair(family, expected.options), models.sequences(family))
    assert rms(found - truth) < expected.logprobs
    assert relative_error(found, truth) < expected.ratios


@pytest.mark.parametrize("residency", [Residency.STREAM, Residency.ALTERNATE])
@pytest.mark.parametrize(("form", "tolerance"), [("fp32", 1e-5), ("int8-activations", 0.02)])
def test_residency_changes_rounding_only(
    models: Models, form: str, tolerance: float, residency: Residency
) -> None:
    """An activation that is an ulp apart may round to the next code."""
    pair, sequences = models.pair("qwen3", FORMS[form].options), models.sequences("qwen3")
    resident, other = (logprobs(pair, sequences, each) for each in (Residency.RESIDENT, residency))
    np.testing.assert_allclose(other, resident, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILY_SHAPES)
def test_kept_prefixes_change_rounding_only(models: Models, family: str) -> None:
    pair = Pair.open(models.pair(family, FP32.options))
    kept, plain = (open_engine(pair, EngineOptions(prefix_cache=size)) for size in (1 << 20, 0))
    sequence = models.sequences(family)[-1]
    for end in (50, 190, 200):
        found, truth = (np.stack(engine.logprobs([sequence[:end]])[0]) for engine in (kept, plain))
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5)


def test_streamed_layers_of_a_pair_for_cuda_give_the_same(models: Models) -> None:
    pair, sequences = models.pair("qwen3", CUDA_CODED.options), models.sequences("qwen3")
    resident, streamed = (logprobs(pair, sequences, each) for each in (Residency.RESIDENT, Residency.STREAM))
    np.testing.assert_array_equal(streamed, resident)


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_a_lossless_pair_has_both_models_bit_for_bit(
    models: Models, tmp_path: Path, shared_folder: SharedFolder, family: str
) -> None:
    folders = [
        write_checkpoint(tmp_path / name, FAMILY_SHAPES[family], seed=1, dtype="bfloat16", perturb=perturb)
        for name, perturb in (("policy", 0.01), ("reference", 0.0))
    ]
    sequences = models.sequences(family)
    found = logprobs(PairOf(Checkpoints(*folders), shared_folder).form(LOSSLESS), sequences)
    truth = np.stack([truth_of(folder, sequences) for folder in folders])
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4)  # on the CPU, which computes in fp32

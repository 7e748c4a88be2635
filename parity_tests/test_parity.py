"""The exported pair, run by the real runtime, against the reference: how near, and at which precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity_tests.support import model_card as card
from parity_tests.support.batches import largest_error
from parity_tests.support.fp64_reference import Numerics, logprobs, pair_logprobs
from parity_tests.support.pair_cache import Workshop
from parity_tests.support.random_pairs import (
    ODD,
    RANDOM_PAIRS,
    TIED,
    UNTIED,
    WIDE,
    RandomPair,
    regular_step_ends,
)
from parity_tests.support.storage_forms import CODED, FP16, FP32, INT8, INTEGER, UNCODED, Storage
from parity_tests.support.torch_rounding import rounded_models
from transformers import AutoTokenizer

from stepscore.enums import Convention
from stepscore.scorer import Scorer
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.fidelity import FidelityMetrics, Scores, as_float64, fidelity
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

SMALL_PAIRS = (TIED, UNTIED, ODD)
each_pair = pytest.mark.parametrize("pair", RANDOM_PAIRS, ids=lambda pair: pair.name)
each_small_pair = pytest.mark.parametrize("pair", SMALL_PAIRS, ids=lambda pair: pair.name)
each_rounding = pytest.mark.parametrize(
    "storage",
    [storage for storage in (*UNCODED, *CODED) if storage not in (FP32, INTEGER)],
    ids=lambda storage: storage.name,
)


# Fp32: the graph computes what the models say


@each_pair
def test_fp32_is_within_1e_4_nats_of_float64_in_one_mixed_batch(workshop: Workshop, pair: RandomPair) -> None:
    """Measured 1.9e-5 at most; PyTorch's own fp32 reaches 9.9e-5 on the same pairs."""
    engine = workshop.engine(workshop.models(pair), FP32.options)
    scores = as_float64(engine.logprobs(pair.sequences()))
    assert largest_error(scores, workshop.reference(pair, Numerics.FP64)) <= 1e-4


@each_small_pair
def test_fp32_is_within_1e_4_nats_of_float64_at_every_length_alone(
    workshop: Workshop, pair: RandomPair
) -> None:
    engine = workshop.engine(workshop.models(pair), FP32.options)
    scores = as_float64([engine.logprobs([tokens])[0] for tokens in pair.sequences()])
    assert largest_error(scores, workshop.reference(pair, Numerics.FP64)) <= 1e-4


@each_small_pair
def test_the_exporters_own_oracle_is_the_float64_reference(workshop: Workshop, pair: RandomPair) -> None:
    folder = workshop.models(pair).policy
    [tokens] = pair.sequences([40])
    [truth] = logprobs(folder, [tokens], Numerics.FP64)
    with Checkpoint.open(folder) as checkpoint:
        _, ours = hidden_and_logprobs(checkpoint, tokens)
    assert np.abs(ours - truth).max() < 1e-10


# Lower precision: only the weights are rounded


@pytest.mark.parametrize("pair", [TIED, ODD], ids=lambda pair: pair.name)
@each_rounding
def test_storage_costs_only_the_rounding_of_weights(
    workshop: Workshop, tmp_path: Path, pair: RandomPair, storage: Storage
) -> None:
    """Against fp64 on the rounded weights: activations stay exact. Measured 2.3e-5 at most.

    Given rows would come from the weights as they are.
    """
    options = replace(storage.options, prefix=False)
    models = workshop.models(pair)
    rounded = rounded_models(models, tmp_path, options)
    truth = pair_logprobs(rounded.policy, rounded.reference, pair.sequences(), Numerics.FP64)
    scores = as_float64(workshop.engine(models, options).logprobs(pair.sequences()))
    assert largest_error(scores, truth) <= 1e-4


def test_wide_head_at_8_bits_costs_only_the_rounding_of_weights(workshop: Workshop, tmp_path: Path) -> None:
    models, sequences = workshop.models(WIDE), WIDE.sequences([2, 64])
    rounded = rounded_models(models, tmp_path, INT8.options)
    truth = logprobs(rounded.policy, sequences, Numerics.FP64)
    scores = workshop.engine(models, INT8.options).logprobs(sequences)
    assert max(np.abs(policy - true).max() for (policy, _), true in zip(scores, truth, strict=True)) <= 1e-4


@each_small_pair
def test_fp16_storage_is_nearer_to_float64_than_a_pytorch_fp16_model(
    workshop: Workshop, pair: RandomPair
) -> None:
    """fp32 arithmetic on fp16 weights: measured 2 to 1000 times nearer (a bf16 source fits into fp16)."""
    ends = [regular_step_ends(len(tokens)) for tokens in pair.sequences()]
    truth = workshop.reference(pair, Numerics.FP64)

    def error(scores: Scores) -> FidelityMetrics:
        return fidelity(scores, truth, ends)

    ours = error(as_float64(workshop.engine(workshop.models(pair), FP16.options).logprobs(pair.sequences())))
    theirs = error(workshop.reference(pair, Numerics.PYTORCH_FP16_LOGITS32))
    assert ours.logprob_rms < theirs.logprob_rms
    assert ours.ratio_error < theirs.ratio_error


# From a record to rewards

RECORDS = [
    ("What is 12 + 30?", ["12 + 30 is 12 + 30.", "So the answer is 42."]),
    ("Eine Frage über Größe?\n\nUnd noch eine.", ["Erst\n\ndies.", "dann das", "∴ 7 > 3 😀", "Ende?"]),
    ("x", ["Single step"]),
]


@pytest.mark.parametrize("convention", Convention)
def test_rewards_of_a_record_are_those_of_the_cards_code_in_float64(
    workshop: Workshop, convention: Convention
) -> None:
    """Sums of up to 200 log-ratios, each within 1e-4 nats and most of them a hundred times nearer."""
    models = workshop.models(TIED)
    tokenizer = AutoTokenizer.from_pretrained(models.policy)
    encoded = [card.encode(tokenizer, problem, steps, convention) for problem, steps in RECORDS]
    truth = pair_logprobs(models.policy, models.reference, [e.ids for e in encoded], Numerics.FP64)
    with Scorer.load(workshop.exported(models, FP32.options), convention=convention, beta=0.5) as scorer:
        results = scorer.score([{"problem": problem, "steps": steps} for problem, steps in RECORDS])
    for result, record, (policy, reference) in zip(results, encoded, truth, strict=True):
        start = record.summed_from(convention)
        expected = card.cumulative_rewards(policy, reference, record, beta=0.5, start=start)
        assert result.num_tokens == len(record.ids)
        assert result.step_ends == record.step_ends.tolist()
        np.testing.assert_allclose(result.cumulative_rewards, expected, rtol=0, atol=5e-4)
        np.testing.assert_allclose(result.step_rewards, np.diff(expected, prepend=0), rtol=0, atol=5e-4)
        assert result.outcome_reward == result.cumulative_rewards[-1]

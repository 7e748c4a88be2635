"""The two exporters check each other: our graphs, and transformers' code as optimum traces it, at fp32."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from parity_tests.support.batches import largest_error
from parity_tests.support.bundled_pair import EXAMPLES, PROBLEMS
from parity_tests.support.fp64_reference import Numerics
from parity_tests.support.pair_cache import Workshop, scored
from parity_tests.support.random_pairs import FAMILY_PAIRS, ODD, TIED, UNTIED, Models, RandomPair
from parity_tests.support.storage_forms import FP32
from testing.optimum_pairs import TRACED

from stepscore.artifact.pair import Pair
from stepscore.enums import Convention
from stepscore_export.fidelity import as_float64

pytestmark = pytest.mark.optimum
WITHIN = 1e-4
"""Nats, the largest of all tokens. Measured: 2e-5."""

ALONE = RandomPair(
    "one layer, one head, untied, vocabulary of 8,193 columns: two tiles",
    replace(ODD.shape, num_hidden_layers=1, num_attention_heads=1, head_dim=32, vocab_size=8193),
)
each_pair = pytest.mark.parametrize("pair", [TIED, UNTIED, ODD, ALONE], ids=lambda pair: pair.name)


@each_pair
def test_both_exporters_agree_on_random_pairs(workshop: Workshop, pair: RandomPair) -> None:
    models = workshop.models(pair)
    ours, traced = (
        as_float64(workshop.engine(models, options).logprobs(pair.sequences()))
        for options in (FP32.options, TRACED)
    )
    assert largest_error(traced, ours) <= WITHIN


@pytest.mark.parametrize("pair", FAMILY_PAIRS, ids=lambda pair: pair.name)
def test_traced_pair_of_any_family_is_within_1e_4_nats_of_transformers(
    workshop: Workshop, pair: RandomPair
) -> None:
    engine = workshop.engine(workshop.models(pair), TRACED)
    scores = as_float64(engine.logprobs(pair.sequences()))
    assert largest_error(scores, workshop.reference(pair, Numerics.PYTORCH_FP32)) <= WITHIN


@each_pair
def test_traced_pair_is_within_1e_4_nats_of_float64(workshop: Workshop, pair: RandomPair) -> None:
    engine = workshop.engine(workshop.models(pair), TRACED)
    scores = as_float64(engine.logprobs(pair.sequences()))
    assert largest_error(scores, workshop.reference(pair, Numerics.FP64)) <= WITHIN


def test_both_exporters_agree_on_the_example_pair(workshop: Workshop) -> None:
    models = Models(EXAMPLES / "pair" / "policy", EXAMPLES / "pair" / "reference")
    encoder = Pair.open(workshop.exported(models, FP32.options)).encoder()
    lines = PROBLEMS.read_text(encoding="utf-8").splitlines()[:48]
    sequences = [
        encoder.encode(record["problem"], record["steps"], Convention.CARD).token_ids
        for record in map(json.loads, lines)
    ]
    ours = scored(workshop.engine(models, FP32.options), sequences)
    traced = scored(workshop.engine(models, TRACED), sequences)
    assert largest_error(traced, ours) <= WITHIN
    assert sum(len(policy) for policy, _ in ours) > 5000


def test_traced_pair_of_equal_models_gives_exactly_zero(workshop: Workshop) -> None:
    policy = workshop.models(TIED).policy
    engine = workshop.engine(Models(policy, policy), TRACED)
    for mine, theirs in engine.logprobs(TIED.sequences()):
        np.testing.assert_array_equal(mine, theirs)

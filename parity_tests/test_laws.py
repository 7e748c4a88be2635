"""What must hold whatever the weights are, on the real exporter and runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity_tests.support.batches import batches, few_examples, flat, sequences, token_ids
from parity_tests.support.fp64_reference import Tokens
from parity_tests.support.pair_cache import Workshop
from parity_tests.support.random_pairs import TIED, UNTIED, Models
from parity_tests.support.storage_forms import FP16, FP32, INT4, INT8, INT8_INT8, Storage

from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine


def each(storages: tuple[Storage, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("storage", storages, ids=lambda storage: storage.name)


@each((FP16, INT8, INT4, INT8_INT8))
def test_identical_models_agree_to_the_bit(workshop: Workshop, storage: Storage) -> None:
    """So every reward is exactly 0.

    Other coded forms: tests/export/weights/test_difference.py; fp32: tests/runtime/test_scorer.py.
    """
    models = workshop.models(TIED)
    engine = workshop.engine(Models(models.reference, models.reference), storage.options)
    policy, reference = flat(engine.logprobs(TIED.sequences()))
    assert np.array_equal(policy, reference)


@each((FP16, INT4))
def test_swapped_roles_swap_the_log_probs_to_the_bit(workshop: Workshop, storage: Storage) -> None:
    """So every reward changes its sign and nothing else."""
    models = workshop.models(TIED)
    policy, reference = flat(workshop.engine(models, storage.options).logprobs(TIED.sequences()))
    swapped = flat(workshop.engine(models.swapped(), storage.options).logprobs(TIED.sequences()))
    assert np.array_equal(swapped, (reference, policy))
    assert not np.array_equal(policy, reference)


@few_examples
@given(tokens=sequences, tail=st.lists(token_ids, min_size=1, max_size=60))
def test_later_tokens_do_not_change_a_bit(workshop: Workshop, tokens: Tokens, tail: list[int]) -> None:
    """Log-prob j scores token j + 1: tokens from `cut` on are not seen by the first cut - 1 of them."""
    engine = workshop.engine(workshop.models(UNTIED), FP32.options)
    cut = len(tokens) - min(len(tokens) - 1, len(tail))
    changed = np.concatenate([tokens[:cut], tail[: len(tokens) - cut]])
    for before, after in zip(*(engine.logprobs([ids])[0] for ids in (tokens, changed)), strict=True):
        assert np.array_equal(before[: cut - 1], after[: cut - 1])


@few_examples
@given(tokens=sequences, tail=st.lists(token_ids, min_size=1, max_size=60))
def test_appended_tokens_keep_log_probs_of_the_prefix(
    workshop: Workshop, tokens: Tokens, tail: list[int]
) -> None:
    engine = workshop.engine(workshop.models(UNTIED), FP32.options)
    longer = np.concatenate([tokens, tail])
    for before, after in zip(*(engine.logprobs([ids])[0] for ids in (tokens, longer)), strict=True):
        assert np.abs(before - after[: len(before)]).max() <= 1e-5


@few_examples
@given(batch=batches)
def test_batch_gives_each_sequence_its_log_probs_alone(workshop: Workshop, batch: list[Tokens]) -> None:
    engine = workshop.engine(workshop.models(UNTIED), FP32.options)
    together = flat(engine.logprobs(batch))
    alone = flat([engine.logprobs([tokens])[0] for tokens in batch])
    assert np.abs(np.asarray(together) - np.asarray(alone)).max() <= 1e-5


@few_examples
@given(prefix=sequences, tails=st.lists(st.lists(token_ids, max_size=20), min_size=2, max_size=5))
def test_common_prefix_changes_no_log_prob(
    workshop: Workshop, prefix: Tokens, tails: list[list[int]]
) -> None:
    engine = workshop.engine(workshop.models(UNTIED), FP32.options)
    batch = [np.concatenate([prefix, np.asarray(tail, np.int64)]) for tail in tails]
    together = flat(engine.logprobs(batch))
    alone = flat([engine.logprobs([tokens])[0] for tokens in batch])
    assert np.abs(np.asarray(together) - np.asarray(alone)).max() <= 1e-5


def test_head_chunk_size_changes_no_log_prob(workshop: Workshop) -> None:
    models = workshop.models(UNTIED)
    whole = flat(workshop.engine(models, FP32.options).logprobs(UNTIED.sequences()))
    three_rows = EngineOptions(head_rows=3)
    engine = OrtEngine(Pair.open(workshop.exported(models, FP32.options)), three_rows)
    assert np.abs(np.asarray(whole) - np.asarray(flat(engine.logprobs(UNTIED.sequences())))).max() <= 1e-5
    engine.close()

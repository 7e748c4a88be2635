"""The view of computed positions: every computed token once, with the keys before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.batching.batch import Batch, pack
from stepscore.batching.few_queries import MAX_SCORES, NEVER
from stepscore.batching.kept_prefixes import KeptPrefixes, keeping

VIEW = {contract.FEW_QUERIES, contract.FEW_KEYS, contract.UNPAD_INDEX, contract.PAD_INDEX}


def continued(kept: int, ends: list[list[int]]) -> Batch:
    """A batch of texts whose first tokens are kept."""
    beginning = list(range(100, 100 + kept))
    prefixes = KeptPrefixes(kept, np.empty(0, np.int64))
    batch = pack([np.array([*beginning, 1])], [0], given=prefixes)
    with keeping(prefixes, [batch]):
        pass
    texts = [np.array([*beginning, *end]) for end in ends]
    return pack(texts, [0] * len(texts), given=prefixes)


ends = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4)


@given(st.integers(12, 20), ends)
def test_every_computed_token_is_a_query_that_sees_what_is_before_it(
    kept: int, ends: list[list[int]]
) -> None:
    batch = continued(kept, ends)
    few = batch.few
    assert few is not None
    queries = few.queries.reshape(-1)[few.unpad_index]
    assert queries.tolist() == list(range(batch.num_given, batch.num_given + len(batch.input_ids)))
    length = batch.pad_index.shape[1]
    seen = few.mask.reshape(-1, length)[few.unpad_index] == 0
    positions = few.positions.reshape(-1)[few.unpad_index]
    assert np.array_equal(seen, np.arange(length) <= positions[:, None])
    sequence = few.unpad_index // few.queries.shape[1]
    assert np.array_equal(batch.pad_index[sequence, positions], queries)
    assert np.array_equal(positions, batch.unpad_index % length)
    assert set(np.unique(few.mask)) <= {np.float32(0), NEVER}


def test_first_view_is_a_single_token_where_the_second_is_used() -> None:
    feeds = continued(12, [[1, 2]]).feeds(VIEW)
    assert feeds[contract.PAD_INDEX].tolist() == [[0]]
    assert feeds[contract.FEW_KEYS].shape == (1, 14)
    assert feeds[contract.UNPAD_INDEX].tolist() == [0, 1]


def test_graphs_without_the_second_view_are_fed_the_first() -> None:
    batch = continued(12, [[1, 2]])
    feeds = batch.feeds({contract.UNPAD_INDEX, contract.PAD_INDEX})
    assert np.array_equal(feeds[contract.UNPAD_INDEX], batch.unpad_index)
    assert np.array_equal(feeds[contract.PAD_INDEX], batch.pad_index)


def sequences_of(feeds: dict[str, NDArray[np.int64]]) -> int:
    return len(feeds[contract.FEW_QUERIES])


def test_batches_of_mostly_computed_tokens_have_no_second_view() -> None:
    assert continued(3, [[1, 2, 3, 4]]).few is None
    assert sequences_of(continued(3, [[1, 2, 3, 4]]).feeds(VIEW)) == 0
    assert sequences_of(pack([np.arange(9)], [0]).feeds(VIEW)) == 0


def test_scores_of_the_second_view_are_bounded() -> None:
    fits, fits_not = (
        next(size for size in range(900) if size * (900 + size) > limit)
        for limit in (MAX_SCORES // 2, MAX_SCORES)
    )
    assert continued(900, [[1] * fits]).few is not None
    assert continued(900, [[1] * fits_not]).few is None

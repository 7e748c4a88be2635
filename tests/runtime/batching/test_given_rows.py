"""Packing with given rows: known tokens are not computed, and everything is found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepscore.batching.batch import Batch, chunks, pack
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.batching.planner import plan

Ids = NDArray[np.int64]
Prefix = tuple[int, ...]
NUM_TOKENS = 4


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Ids], list[int], GivenRows]:
    """A given path, and sequences most of which begin with some of it."""
    tokens = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=8)
    path = draw(tokens)
    sequences = []
    for _ in range(draw(st.integers(1, 8))):
        beginning = path[: draw(st.integers(0, len(path)))] if draw(st.booleans()) else []
        sequence = [*beginning, *draw(tokens)]
        sequences.append(np.array([*sequence, 0, 1][: max(2, len(sequence))], np.int64))
    starts = [draw(st.integers(0, len(sequence) - 2)) for sequence in sequences]
    return sequences, starts, GivenRows(np.array(path, np.int64))


def prefix_of_rows(batch: Batch, known: GivenRows, sequences: Sequence[Ids]) -> dict[int, Prefix]:
    """The tokens up to each row that the padded view names, which must agree wherever it is named."""
    assert batch.given_rows.tolist() == list(range(batch.num_given))
    found: dict[int, Prefix] = {
        row: tuple(known.token_ids[: row + 1].tolist()) for row in range(batch.num_given)
    }
    tokens = np.concatenate([known.token_ids[batch.given_rows], batch.input_ids])
    for rows, last in zip(batch.pad_index, batch.seqlens_k, strict=True):
        for end in range(last + 1):
            prefix = tuple(tokens[rows[: end + 1]].tolist())
            assert found.setdefault(int(rows[end]), prefix) == prefix
    return found


@given(windows(), st.booleans())
def test_every_log_prob_is_that_of_its_prefix_and_token(
    window: tuple[list[Ids], list[int], GivenRows], share: bool
) -> None:
    sequences, starts, known = window
    batch = pack(sequences, starts, share=share, given=known)
    prefixes = prefix_of_rows(batch, known, sequences)
    scored = [*batch.given_scored, *(batch.num_given + batch.score_index)]
    results = [prefixes[row] for row in range(batch.num_given)]
    results += [
        (*prefixes[int(scored[row])], int(token))
        for row, token in zip(batch.target_rows, batch.target_ids, strict=True)
    ]
    for sequence, start, indices in zip(sequences, starts, batch.target_of, strict=True):
        expected = [tuple(sequence[: end + 1].tolist()) for end in range(start + 1, len(sequence))]
        assert [results[index] for index in indices] == expected


@given(windows())
def test_a_row_is_computed_for_every_prefix_that_is_not_given(
    window: tuple[list[Ids], list[int], GivenRows],
) -> None:
    sequences, starts, known = window
    batch = pack(sequences, starts, given=known)
    path = known.token_ids.tolist()
    distinct = {tuple(each[:end].tolist()) for each in sequences for end in range(1, len(each) + 1)}
    whole = {tuple(each.tolist()) for each in sequences}
    given_prefixes = {tuple(path[:end]) for end in range(1, len(path) + 1)}
    assert len(batch.input_ids) >= len(distinct - given_prefixes)
    assert len(batch.input_ids) <= len(distinct - (given_prefixes - whole))


@given(windows(), st.integers(1, 5))
def test_chunks_of_the_head_cover_given_and_computed_rows(
    window: tuple[list[Ids], list[int], GivenRows], size: int
) -> None:
    sequences, starts, known = window
    batch = pack(sequences, starts, given=known)
    rows = [row for _, chunk, _ in chunks(batch, size) for row in chunk.tolist()]
    assert rows == list(range(batch.num_scored))


@given(windows())
def test_a_plan_without_given_rows_numbers_computed_rows_from_0(
    window: tuple[list[Ids], list[int], GivenRows],
) -> None:
    sequences, starts, _ = window
    for group in plan(sequences, starts, 20):
        assert group.batch.num_given == 0
        assert len(group.batch.given_scored) == 0


def test_last_token_is_computed_where_all_of_a_sequence_is_given() -> None:
    known = GivenRows(np.array([7, 8, 9]))
    batch = pack([np.array([7, 8, 9])], [0], given=known)
    assert batch.input_ids.tolist() == [9]
    assert batch.pad_index.tolist() == [[0, 1, 2]]
    assert [indices.tolist() for indices in batch.target_of] == [[1, 2]]


def test_no_rows_match_nothing() -> None:
    assert len(NO_ROWS.match(np.array([1, 2])).rows) == 0

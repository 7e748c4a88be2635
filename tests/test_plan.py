"""Packing: every token once, everything found again; the same indices let the graphs share a prefix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepscore.artifact import ModelName, Pair
from stepscore.engine import Engine
from stepscore.plan import MAX_PADDING, Batch, budgeted, chunks, pack

Ids = NDArray[np.int64]


@st.composite
def scored_sequences(draw: st.DrawFn) -> tuple[list[Ids], list[int]]:
    """Sequences of 2 to 12 tokens, and the log-prob index from which each is scored."""
    lists = draw(st.lists(st.lists(st.integers(0, 319), min_size=2, max_size=12), min_size=1, max_size=6))
    starts = [draw(st.integers(0, len(tokens) - 2)) for tokens in lists]
    return [np.array(tokens) for tokens in lists], starts


# pack


@given(scored_sequences())
def test_every_token_is_a_row_once_and_in_order(drawn: tuple[list[Ids], list[int]]) -> None:
    sequences, starts = drawn
    assert np.array_equal(pack(sequences, starts).input_ids, np.concatenate(sequences))


@given(scored_sequences())
def test_the_padded_view_holds_each_sequence_from_its_first_position(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    sequences, starts = drawn
    batch = pack(sequences, starts)
    assert batch.pad_index.shape == (len(sequences), max(map(len, sequences)))
    for row, sequence, last in zip(batch.pad_index, sequences, batch.seqlens_k, strict=True):
        assert np.array_equal(batch.input_ids[row[: last + 1]], sequence)


@given(scored_sequences())
def test_unpadding_what_was_padded_is_the_identity(drawn: tuple[list[Ids], list[int]]) -> None:
    batch = pack(*drawn)
    assert np.array_equal(batch.pad_index.reshape(-1)[batch.unpad_index], np.arange(len(batch.input_ids)))


@given(scored_sequences())
def test_total_sequence_length_is_the_longest(drawn: tuple[list[Ids], list[int]]) -> None:
    batch = pack(*drawn)
    assert batch.total_sequence_length == batch.seqlens_k.max() + 1


@given(scored_sequences())
def test_the_span_of_a_sequence_scores_its_tokens_behind_the_start(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    batch = pack(*drawn)
    for span, sequence, start in zip(batch.spans, *drawn, strict=True):
        rows = batch.score_index[batch.target_rows[span]]
        assert np.array_equal(batch.input_ids[rows], sequence[start:-1])
        assert np.array_equal(batch.target_ids[span], sequence[start + 1 :])


@given(scored_sequences())
def test_spans_cover_all_pairs_side_by_side(drawn: tuple[list[Ids], list[int]]) -> None:
    batch = pack(*drawn)
    covered = np.concatenate([np.arange(span.start, span.stop) for span in batch.spans])
    assert np.array_equal(covered, np.arange(len(batch.target_ids)))


@pytest.mark.parametrize(("length", "start"), [(1, 0), (0, 0), (5, 4), (5, -1)])
def test_a_start_without_a_logprob_is_refused(length: int, start: int) -> None:
    with pytest.raises(ValueError, match="outside the log-probs"):
        pack([np.arange(length)], [start])


# budgeted

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
BUDGETS = st.integers(1, 60)


def groups_of(lengths: list[int], budget: int) -> list[list[int]]:
    return list(budgeted(lengths, lambda length: length, budget))


@given(LENGTHS, BUDGETS)
def test_groups_hold_every_item_in_order(lengths: list[int], budget: int) -> None:
    assert [length for group in groups_of(lengths, budget) for length in group] == lengths


@given(LENGTHS, BUDGETS)
def test_a_group_is_within_the_budget_or_one_long_item(lengths: list[int], budget: int) -> None:
    for group in groups_of(lengths, budget):
        assert sum(group) <= budget or np.count_nonzero(group) == 1


@given(LENGTHS, BUDGETS)
def test_the_padded_view_of_a_group_is_bounded(lengths: list[int], budget: int) -> None:
    for group in groups_of(lengths, budget):
        count = np.count_nonzero(group)
        assert count * max(group) <= MAX_PADDING * budget or count == 1


@given(LENGTHS, BUDGETS)
def test_a_group_ends_only_where_the_next_item_does_not_fit(lengths: list[int], budget: int) -> None:
    groups = groups_of([length for length in lengths if length], budget)
    for group, following in itertools.pairwise(groups):
        joined = [*group, following[0]]
        assert sum(joined) > budget or len(joined) * max(joined) > MAX_PADDING * budget


@given(LENGTHS, BUDGETS)
def test_items_without_tokens_do_not_change_how_the_others_are_grouped(
    lengths: list[int], budget: int
) -> None:
    with_them = [[n for n in group if n] for group in groups_of(lengths, budget)]
    assert [group for group in with_them if group] == groups_of([n for n in lengths if n], budget)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), BUDGETS)
def test_grouping_reads_one_item_ahead_at_most(lengths: list[int], budget: int) -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for length in lengths:
            read.append(length)
            yield length

    handed_out = 0
    for group in budgeted(source(), lambda length: length, budget):
        handed_out += len(group)
        assert len(read) <= handed_out + 1


# chunks


@given(scored_sequences(), st.integers(1, 9))
def test_chunks_together_are_the_whole(drawn: tuple[list[Ids], list[int]], max_rows: int) -> None:
    batch = pack(*drawn)
    assert_chunks_cover(batch, max_rows)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5))
def test_chunks_keep_all_targets_of_a_row_together(targets_per_row: list[int], max_rows: int) -> None:
    count = np.array(targets_per_row)
    total = int(count.sum())
    assert_chunks_cover(
        Batch(
            input_ids=np.arange(len(count)),
            pad_index=np.arange(len(count))[None],
            unpad_index=np.arange(len(count)),
            seqlens_k=np.array([len(count) - 1], np.int32),
            score_index=np.arange(len(count)),
            target_rows=np.repeat(np.arange(len(count)), count),
            target_ids=np.arange(total),
            spans=(slice(0, total),),
        ),
        max_rows,
    )


def assert_chunks_cover(batch: Batch, max_rows: int) -> None:
    seen_rows: list[int] = []
    seen_pairs: list[tuple[int, int]] = []
    for part, rows, targets in chunks(batch, max_rows):
        assert 1 <= len(rows) <= max_rows
        assert part == slice(len(seen_pairs), len(seen_pairs) + len(targets))
        seen_rows += rows.tolist()
        seen_pairs += zip(rows[targets[:, 0]].tolist(), targets[:, 1].tolist(), strict=True)
    assert seen_rows == list(range(len(batch.score_index)))
    assert seen_pairs == list(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))


# A shared prefix: the graphs take it as it is


@pytest.fixture(scope="module")
def engine(tiny_pair: Path) -> Iterator[Engine]:
    engine = Engine(Pair.open(tiny_pair))
    yield engine
    engine.close()


@given(
    st.lists(st.lists(st.sampled_from([7, 8, 9]), min_size=2, max_size=9), min_size=1, max_size=6),
)
def test_a_shared_prefix_gives_the_logprobs_of_the_sequences_alone(
    engine: Engine, sequences: list[list[int]]
) -> None:
    """Three token ids only, so most rows stand in several sequences and have several targets."""
    batch, pairs = pack_as_trie(sequences)
    together = engine.run(batch)
    for sequence, positions in zip(sequences, pairs, strict=True):
        alone = engine.run(pack([np.array(sequence)], [0]))
        model: ModelName
        for model in ("policy", "reference"):
            assert np.abs(together[model][positions] - alone[model]).max() < 1e-5


def pack_as_trie(sequences: list[list[int]]) -> tuple[Batch, list[list[int]]]:
    """Put every distinct prefix in one row; return the (row, token) pairs of each sequence too."""
    rows: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        for end in range(1, len(sequence) + 1):
            rows.setdefault(tuple(sequence[:end]), len(rows))
    width = max(map(len, sequences))
    pad_index = np.zeros((len(sequences), width), np.int64)
    unpad_index = np.zeros(len(rows), np.int64)
    wanted = set()
    for index, sequence in enumerate(sequences):
        for end in range(1, len(sequence) + 1):
            row = rows[tuple(sequence[:end])]
            pad_index[index, end - 1] = row
            unpad_index[row] = index * width + end - 1
            if end < len(sequence):
                wanted.add((row, sequence[end]))
    pairs = sorted(wanted)
    scored = sorted({row for row, _ in pairs})
    batch = Batch(
        input_ids=np.array([prefix[-1] for prefix in rows]),
        pad_index=pad_index,
        unpad_index=unpad_index,
        seqlens_k=np.array([len(sequence) - 1 for sequence in sequences], np.int32),
        score_index=np.array(scored),
        target_rows=np.searchsorted(scored, [row for row, _ in pairs]),
        target_ids=np.array([token for _, token in pairs]),
        spans=(slice(0, len(pairs)),),
    )
    return batch, [
        [pairs.index((rows[tuple(sequence[:end])], sequence[end])) for end in range(1, len(sequence))]
        for sequence in sequences
    ]

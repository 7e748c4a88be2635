"""Packing: every distinct prefix is one row, every target is found again, chunks cover all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.windows import SHARE, Ids, lines_of, prefix_of_each_row, prefixes, windows

from stepscore.batching.batch import chunks, pack
from stepscore.batching.planner import plan


def is_prefix(one: Ids, other: Ids) -> bool:
    return np.array_equal(one, other[: len(one)])


@given(windows())
def test_pack_gives_one_row_per_distinct_prefix(drawn: tuple[list[Ids], list[int]]) -> None:
    rows = prefix_of_each_row(pack(*drawn))
    assert len(rows) == len(set(rows))
    assert set(rows) == prefixes(drawn[0])


@given(windows())
def test_padded_rows_are_sequences_that_prefix_no_other(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    sequences, _ = drawn
    batch = pack(*drawn)
    lines = [tuple(batch.input_ids[line].tolist()) for line in lines_of(batch)]
    distinct = {tuple(each.tolist()) for each in sequences}
    ends = [
        one for one in distinct if not any(one != other and one == other[: len(one)] for other in distinct)
    ]
    assert sorted(lines) == sorted(ends)
    assert batch.pad_index.shape[1] == max(map(len, lines))


@given(windows(), SHARE)
def test_unpad_inverts_pad(drawn: tuple[list[Ids], list[int]], share: bool) -> None:
    batch = pack(*drawn, share=share)
    assert np.array_equal(batch.pad_index.reshape(-1)[batch.unpad_index], np.arange(len(batch.input_ids)))
    lines, positions = np.divmod(batch.unpad_index, batch.pad_index.shape[1])
    assert (positions <= batch.seqlens_k[lines]).all()


@given(windows(), SHARE)
def test_batch_indices_have_the_types_of_the_graph(drawn: tuple[list[Ids], list[int]], share: bool) -> None:
    batch = pack(*drawn, share=share)
    assert batch.total_sequence_length == batch.seqlens_k.max() + 1
    assert (batch.total_sequence_length.dtype, batch.seqlens_k.dtype) == (np.int32, np.int32)
    rest = (batch.input_ids, batch.pad_index, batch.unpad_index, batch.score_index)
    for array in (*rest, batch.target_rows, batch.target_ids, *batch.target_of):
        assert array.dtype == np.int64


@given(windows(), SHARE)
def test_sequence_targets_are_its_tokens_after_the_start(
    drawn: tuple[list[Ids], list[int]], share: bool
) -> None:
    batch = pack(*drawn, share=share)
    rows = prefix_of_each_row(batch)
    for pairs, sequence, start in zip(batch.target_of, *drawn, strict=True):
        scored = [rows[row] for row in batch.score_index[batch.target_rows[pairs]]]
        assert scored == [tuple(sequence[:end].tolist()) for end in range(start + 1, len(sequence))]
        assert np.array_equal(batch.target_ids[pairs], sequence[start + 1 :])


@given(windows())
def test_every_target_is_scored_once_and_belongs_to_a_sequence(drawn: tuple[list[Ids], list[int]]) -> None:
    batch = pack(*drawn)
    assert np.array_equal(np.unique(batch.score_index), np.sort(batch.score_index))
    assert (np.diff(batch.target_rows) >= 0).all()
    assert np.array_equal(np.unique(batch.target_rows), np.arange(len(batch.score_index)))
    pairs = set(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))
    assert len(pairs) == len(batch.target_ids)
    assert np.array_equal(np.unique(np.concatenate(batch.target_of)), np.arange(len(batch.target_ids)))


@given(windows())
def test_padded_rows_follow_depth_first_trie_order(
    drawn: tuple[list[Ids], list[int]],
) -> None:
    """Depth first: two lines are in the order of the first sequences of the two branches where they part."""
    sequences, _ = drawn
    batch = pack(*drawn)
    lines = [batch.input_ids[line] for line in lines_of(batch)]
    for one, other in itertools.pairwise(lines):
        parted = int(np.flatnonzero(one[: len(other)] != other[: len(one)])[0]) + 1
        first, second = (
            min(index for index, each in enumerate(sequences) if is_prefix(line[:parted], each))
            for line in (one, other)
        )
        assert first < second


@given(windows())
def test_pack_without_sharing_gives_each_sequence_its_own_rows(drawn: tuple[list[Ids], list[int]]) -> None:
    sequences, _ = drawn
    batch = pack(*drawn, share=False)
    assert np.array_equal(batch.input_ids, np.concatenate(sequences))
    assert [len(line) for line in lines_of(batch)] == [len(sequence) for sequence in sequences]
    assert np.array_equal(np.concatenate(batch.target_of), np.arange(len(batch.target_ids)))
    assert np.array_equal(batch.target_rows, np.arange(len(batch.target_ids)))


@pytest.mark.parametrize(("length", "start"), [(1, 0), (0, 0), (5, 4), (5, -1)])
def test_start_without_logprob_is_rejected(length: int, start: int) -> None:
    for make in (pack, lambda *of: plan(*of, max_tokens=9)):
        with pytest.raises(ValueError, match="outside the log-probs"):
            make([np.arange(length)], [start])


def test_pack_rejects_no_sequences() -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([], [])


@pytest.mark.parametrize("lengths", [range(2, 3001), range(3000, 1, -1)], ids=["growing", "shrinking"])
def test_thousands_of_partial_solutions_are_one_padded_row(lengths: range) -> None:
    """Deeper than Python's recursion goes."""
    whole = np.random.default_rng(0).integers(0, 100, 3000)
    batch = pack([whole[:length] for length in lengths], [0] * len(lengths))
    assert batch.pad_index.shape[0] == 1
    assert len(batch.target_ids) == len(batch.input_ids) - 1 == 2999


def test_trie_of_a_thousand_branches_is_walked() -> None:
    stem = np.full(1500, 3)
    window = [np.append(stem[:length], 5) for length in range(1, 1501)]
    assert len(pack(window, [0] * 1500).input_ids) == 3000


# Chunks


@given(windows(), st.integers(1, 9))
def test_chunks_together_are_the_whole_and_a_row_is_in_one(
    drawn: tuple[list[Ids], list[int]], max_rows: int
) -> None:
    batch = pack(*drawn)
    seen_rows: list[int] = []
    seen_pairs: list[tuple[int, int]] = []
    for part, rows, targets in chunks(batch, max_rows):
        assert 1 <= len(rows) <= max_rows
        assert part == slice(len(seen_pairs), len(seen_pairs) + len(targets))
        seen_rows += rows.tolist()
        seen_pairs += zip(rows[targets[:, 0]].tolist(), targets[:, 1].tolist(), strict=True)
    assert seen_rows == list(range(len(batch.score_index)))
    assert seen_pairs == list(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))

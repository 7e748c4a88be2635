"""Packed batches: one row per distinct prefix, and the indices that attention and head read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.batching.trie import Int64, Line, depth_first_lines


@dataclass(frozen=True, slots=True)
class Batch:
    """The n distinct prefixes of some sequences, B lines of at most S positions, m scored rows, t pairs.

    `input_ids` int64 [n] are the rows; `pad_index` int64 [B, S] names the row of every position of the
    padded view (0 where there is none); `unpad_index` int64 [n] names a position b * S + s of every row;
    `seqlens_k` int32 [B] is each line's length - 1; `score_index` int64 [m] names the rows whose next token
    is scored; `target_rows` int64 [t] (ascending, into score_index) and `target_ids` int64 [t] are the
    distinct (row, token) pairs. `target_of[i]` int64 are the indices into the pairs of the log-probs of
    sequence i, in order; sequences that begin alike share pairs.
    """

    input_ids: Int64
    pad_index: Int64
    unpad_index: Int64
    seqlens_k: NDArray[np.int32]
    score_index: Int64
    target_rows: Int64
    target_ids: Int64
    target_of: tuple[Int64, ...]

    @property
    def total_sequence_length(self) -> NDArray[np.int32]:
        """Return S as the scalar that GroupQueryAttention wants."""
        return np.array(self.pad_index.shape[1], np.int32)

    def feeds(self, inputs: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the arrays of this batch that a graph with these input names reads, by name."""
        arrays: dict[str, NDArray[Any]] = {
            contract.INPUT_IDS: self.input_ids,
            contract.PAD_INDEX: self.pad_index,
            contract.UNPAD_INDEX: self.unpad_index,
            contract.SEQLENS_K: self.seqlens_k,
            contract.TOTAL_SEQUENCE_LENGTH: self.total_sequence_length,
            contract.SCORE_INDEX: self.score_index,
        }
        return {name: array for name, array in arrays.items() if name in inputs}


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """A batch of a window: `members[i]` is the window's sequence that `batch.target_of[i]` belongs to."""

    members: tuple[int, ...]
    batch: Batch


def pack(sequences: Sequence[Int64], starts: Sequence[int], *, share: bool = True) -> Batch:
    """Pack sequences into one batch; sequence i is scored from log-prob index starts[i] on.

    Log-prob j of a sequence scores its token j + 1, so a sequence of L tokens has the log-probs
    starts[i] .. L - 2. Without `share`, every sequence has a line and rows of its own. Raises ValueError for
    no sequence, one under 2 tokens, or a start outside 0 .. L - 2.

    >>> batch = pack([np.array([7, 8, 9]), np.array([7, 8, 4, 5]), np.array([7, 8])], [1, 0, 0])
    >>> batch.input_ids.tolist(), batch.pad_index.tolist(), batch.unpad_index.tolist()
    ([7, 8, 9, 4, 5], [[0, 1, 2, 0], [0, 1, 3, 4]], [0, 1, 2, 6, 7])
    >>> batch.score_index.tolist(), batch.target_rows.tolist(), batch.target_ids.tolist()
    ([0, 1, 3], [0, 1, 1, 2], [8, 9, 4, 5])
    >>> [pairs.tolist() for pairs in batch.target_of]
    [[1], [0, 2, 3], [0]]
    """
    if not sequences:
        raise ValueError("there is nothing to pack")
    check_starts(sequences, starts)
    members = range(len(sequences))
    return pack_lines(sequences, starts, list(depth_first_lines(sequences, members, share=share)), members)


def chunks(batch: Batch, max_rows: int) -> Iterator[tuple[slice, Int64, Int64]]:
    """Cut the scored rows into chunks for the head; a row and all its targets are in one chunk.

    Yields (slice of the pairs, rows int64 [c], targets int64 [p, 2]) where targets are (index into rows,
    token id).

    >>> batch = pack([np.array([5, 6, 7, 8]), np.array([5, 9])], [0, 0])
    >>> [(part, rows.tolist(), targets.tolist()) for part, rows, targets in chunks(batch, 2)]
    [(slice(0, 3, None), [0, 1], [[0, 6], [0, 9], [1, 7]]), (slice(3, 4, None), [2], [[0, 8]])]
    """
    for first in range(0, len(batch.score_index), max_rows):
        rows = np.arange(first, min(first + max_rows, len(batch.score_index)))
        low, high = np.searchsorted(batch.target_rows, [first, first + len(rows)])
        part = slice(int(low), int(high))
        yield part, rows, np.stack([batch.target_rows[part] - first, batch.target_ids[part]], axis=-1)


def check_starts(sequences: Sequence[Int64], starts: Sequence[int]) -> None:
    """Raise ValueError where a start is outside the log-probs of its sequence."""
    for sequence, start in zip(sequences, starts, strict=True):
        if not 0 <= start <= len(sequence) - 2:
            raise ValueError(f"start {start} is outside the log-probs of {len(sequence)} tokens")


def pack_lines(
    sequences: Sequence[Int64], starts: Sequence[int], lines: Sequence[Line], members: Sequence[int]
) -> Batch:
    """Number the rows line by line. A pair (row, next token) is named by the row that computes the token."""
    lengths = np.array([line.length for line in lines])
    shared = np.array([line.shared for line in lines])
    positions = np.arange(lengths.max())
    own = (shared[:, None] <= positions) & (positions < lengths[:, None])  # [B, S]
    unpad_index = np.flatnonzero(own)
    pad_index = np.zeros(own.shape, np.int64)
    pad_index[own] = np.arange(len(unpad_index))
    for before, path, common in zip(pad_index, pad_index[1:], shared[1:], strict=False):
        path[:common] = before[:common]
    input_ids = np.concatenate([sequences[line.members[-1]][line.shared :] for line in lines])

    paths = {index: path for line, path in zip(lines, pad_index, strict=True) for index in line.members}
    scored = [paths[index][starts[index] + 1 : len(sequences[index])] for index in members]
    is_scored = np.zeros(len(input_ids), np.bool_)
    for rows in scored:
        is_scored[rows] = True
    targets = np.flatnonzero(is_scored)
    before_each = pad_index.reshape(-1)[unpad_index - 1]  # the row before each; of no use for a first token
    targets = targets[np.argsort(before_each[targets], kind="stable")]
    score_index, target_rows = np.unique(before_each[targets], return_inverse=True)
    pair_of = np.zeros(len(input_ids), np.int64)
    pair_of[targets] = np.arange(len(targets))
    return Batch(
        input_ids=input_ids,
        pad_index=pad_index,
        unpad_index=unpad_index,
        seqlens_k=(lengths - 1).astype(np.int32),
        score_index=score_index,
        target_rows=target_rows,
        target_ids=input_ids[targets],
        target_of=tuple(pair_of[rows] for rows in scored),
    )

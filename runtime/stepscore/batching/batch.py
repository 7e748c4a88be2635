"""Packed batches: one token per distinct prefix, and the indices that attention and the head read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.batching.trie import Int64, LeafPath, leaf_paths


@dataclass(frozen=True, slots=True)
class Batch:
    """n packed tokens, one per distinct prefix; a padded view of B sequences [B, S]; t targets.

    `input_ids` int64 [n] are the packed tokens; `pad_index` int64 [B, S] is the packed token of each position
    of the padded view (0 for padding); `unpad_index` int64 [n] is a position b * S + s of each packed token;
    `seqlens_k` int32 [B] is the length - 1 of each sequence of the view; `score_index` int64 [m] are the
    packed tokens whose next token is scored. Target i is the pair (scored token `target_rows[i]`, an index
    into score_index, next token `target_ids[i]`), both int64 [t], `target_rows` ascending. `target_of[i]`
    int64 are the targets of sequence i's log-probs, in order; sequences with a common prefix share targets.
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
        """Return S as the int32 scalar that GroupQueryAttention expects."""
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
    """A batch of a window: `batch.target_of[i]` belongs to sequence `members[i]` of the window."""

    members: tuple[int, ...]
    batch: Batch


def pack(sequences: Sequence[Int64], starts: Sequence[int], *, share: bool = True) -> Batch:
    """Pack sequences into one batch; the log-probs of sequence i are computed from index starts[i] on.

    Log-prob j of a sequence is that of its token j + 1, so a sequence of L tokens gets the log-probs
    starts[i] .. L - 2. Without `share`, common prefixes are computed for every sequence. Raises ValueError
    for no sequence, one under 2 tokens, or a start outside 0 .. L - 2.

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
    return pack_paths(sequences, starts, list(leaf_paths(sequences, members, share=share)), members)


def chunks(batch: Batch, max_rows: int) -> Iterator[tuple[slice, Int64, Int64]]:
    """Cut the scored tokens into chunks for the head; a token and all its targets are in one chunk.

    Yields (slice of the targets, rows int64 [c], targets int64 [p, 2]): `rows` are the scored tokens of the
    chunk, and a target is (index into rows, token id).

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


def pack_paths(
    sequences: Sequence[Int64], starts: Sequence[int], paths: Sequence[LeafPath], members: Sequence[int]
) -> Batch:
    """Number the packed tokens path by path; a target is known by the packed token that it predicts."""
    lengths = np.array([path.length for path in paths])
    shared = np.array([path.shared for path in paths])
    positions = np.arange(lengths.max())
    own = (shared[:, None] <= positions) & (positions < lengths[:, None])  # [B, S]
    unpad_index = np.flatnonzero(own)
    pad_index = np.zeros(own.shape, np.int64)
    pad_index[own] = np.arange(len(unpad_index))
    for before, row, common in zip(pad_index, pad_index[1:], shared[1:], strict=False):
        row[:common] = before[:common]
    input_ids = np.concatenate([sequences[path.members[-1]][path.shared :] for path in paths])

    tokens_of = {index: row for path, row in zip(paths, pad_index, strict=True) for index in path.members}
    scored = [tokens_of[index][starts[index] + 1 : len(sequences[index])] for index in members]
    is_scored = np.zeros(len(input_ids), np.bool_)
    for rows in scored:
        is_scored[rows] = True
    targets = np.flatnonzero(is_scored)
    before_each = pad_index.reshape(-1)[
        unpad_index - 1
    ]  # the token before each; meaningless for a first token
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

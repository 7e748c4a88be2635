"""Packed batches: one token per distinct prefix, and the indices that attention and the head read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.batching.few_queries import FewQueries
from stepscore.batching.given_rows import NO_ROWS, Given, Match, agree
from stepscore.batching.trie import Int64, LeafPath, leaf_paths

NO_INDEX: Int64 = np.empty(0, np.int64)
NO_VIEW: Int64 = np.empty((0, 0), np.int64)
NO_MASK: NDArray[np.float32] = np.empty((0, 0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Batch:
    """n packed tokens, one per distinct prefix; a padded view of B sequences [B, S]; t targets.

    The first g packed tokens are given: `given_rows` int64 [g] are their ids (given_rows.py). The other n are
    computed: packed token g + i is `input_ids[i]`, int64 [n]. `pad_index` int64 [B, S] is the packed token of
    each position of the padded view (0 for padding); `unpad_index` int64 [n] is a position b * S + s of each
    computed one; `seqlens_k` int32 [B] is the length - 1 of each sequence of the view, `paths` are its token
    ids.

    Scored (their next token is a target) are k given ones, `given_scored` int64 [k], and m computed ones,
    `score_index` int64 [m], an index into input_ids. Where rows are kept, the last token of each sequence of
    the view is among these, as a later call may continue it. Target i is the pair (scored token
    `target_rows[i]`, an index into these k + m, next token `target_ids[i]`), both int64 [t], `target_rows`
    ascending; it is the computed token `target_index[i]`, int64 [t], an index into input_ids.

    An engine returns g + t log-probs: those of the given tokens themselves, then those of the targets.
    `target_of[i]` int64 are the indices into them of sequence i's log-probs, in order; sequences with a
    common prefix share targets. While the `leases` exist, the given rows stay what they are. `few` is a view
    of the computed positions alone, where most are given.
    """

    input_ids: Int64
    pad_index: Int64
    unpad_index: Int64
    seqlens_k: NDArray[np.int32]
    score_index: Int64
    given_scored: Int64
    target_rows: Int64
    target_ids: Int64
    target_of: tuple[Int64, ...]
    target_index: Int64
    paths: tuple[Int64, ...]
    given_rows: Int64
    leases: tuple[object, ...] = field(default=(), repr=False)
    few: FewQueries | None = None

    @property
    def num_given(self) -> int:
        """Return g."""
        return len(self.given_rows)

    @property
    def num_scored(self) -> int:
        """Return k + m, the rows that the head reads."""
        return len(self.given_scored) + len(self.score_index)

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
            contract.KEPT_INDEX: NO_INDEX,
        }
        if contract.FEW_QUERIES in inputs:
            arrays |= self._few_feeds()
        return {name: array for name, array in arrays.items() if name in inputs}

    def _few_feeds(self) -> dict[str, NDArray[Any]]:
        """Return the second view, and where it is used, in place of the first one that of a single token."""
        few = self.few
        if few is None:
            return {
                contract.FEW_QUERIES: NO_VIEW,
                contract.FEW_POSITIONS: NO_VIEW,
                contract.FEW_KEYS: NO_VIEW,
                contract.FEW_MASK: NO_MASK,
            }
        return {
            contract.FEW_QUERIES: few.queries,
            contract.FEW_POSITIONS: few.positions,
            contract.FEW_KEYS: self.pad_index,
            contract.FEW_MASK: few.mask,
            contract.PAD_INDEX: np.zeros((1, 1), np.int64),
            contract.UNPAD_INDEX: few.unpad_index,
            contract.SEQLENS_K: np.zeros(1, np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(1, np.int32),
        }


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """A batch of a window: `batch.target_of[i]` belongs to sequence `members[i]` of the window."""

    members: tuple[int, ...]
    batch: Batch


def pack(
    sequences: Sequence[Int64], starts: Sequence[int], *, share: bool = True, given: Given = NO_ROWS
) -> Batch:
    """Pack sequences into one batch; the log-probs of sequence i are computed from index starts[i] on.

    Log-prob j of a sequence is that of its token j + 1, so a sequence of L tokens gets the log-probs
    starts[i] .. L - 2. Without `share`, common prefixes are computed for every sequence, as far as they are
    not `given`. Raises ValueError for no sequence, one under 2 tokens, or a start outside 0 .. L - 2.

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
    paths = list(leaf_paths(sequences, members, share=share))
    matches = [match_of(given, path, sequences, starts) for path in paths]
    return pack_paths(sequences, starts, paths, members, matches, keeps_rows=given.keeps_rows)


def match_of(given: Given, path: LeafPath, sequences: Sequence[Int64], starts: Sequence[int]) -> Match:
    """Return the given rows of a path, on which every member's log-probs can be found."""
    return given.match(sequences[path.members[-1]], min(starts[member] for member in path.members))


def chunks(batch: Batch, max_rows: int) -> Iterator[tuple[slice, Int64, Int64]]:
    """Cut the scored tokens into chunks for the head; a token and all its targets are in one chunk.

    Yields (slice of the targets, rows int64 [c], targets int64 [p, 2]): `rows` are the scored tokens of the
    chunk, and a target is (index into rows, token id).

    >>> batch = pack([np.array([5, 6, 7, 8]), np.array([5, 9])], [0, 0])
    >>> [(part, rows.tolist(), targets.tolist()) for part, rows, targets in chunks(batch, 2)]
    [(slice(0, 3, None), [0, 1], [[0, 6], [0, 9], [1, 7]]), (slice(3, 4, None), [2], [[0, 8]])]
    """
    with_targets, index_of = np.unique(batch.target_rows, return_inverse=True)
    for first in range(0, len(with_targets), max_rows):
        rows = with_targets[first : first + max_rows]
        low, high = np.searchsorted(index_of, [first, first + len(rows)])
        part = slice(int(low), int(high))
        yield part, rows, np.stack([index_of[part] - first, batch.target_ids[part]], axis=-1)


def check_starts(sequences: Sequence[Int64], starts: Sequence[int]) -> None:
    """Raise ValueError where a start is outside the log-probs of its sequence."""
    for sequence, start in zip(sequences, starts, strict=True):
        if not 0 <= start <= len(sequence) - 2:
            raise ValueError(f"start {start} is outside the log-probs of {len(sequence)} tokens")


def pack_paths(
    sequences: Sequence[Int64],
    starts: Sequence[int],
    paths: Sequence[LeafPath],
    members: Sequence[int],
    matches: Sequence[Match],
    *,
    keeps_rows: bool,
) -> Batch:
    """Number the packed tokens path by path; a target is known by the packed token that it predicts."""
    lengths = np.array([path.length for path in paths])
    shared = np.array([path.shared for path in paths])
    agreed = agree([len(match.rows) for match in matches], shared.tolist())
    given_rows, numbers = np.unique(
        np.concatenate([match.rows[:count] for match, count in zip(matches, agreed, strict=True)]),
        return_inverse=True,
    )
    num_given = len(given_rows)
    known = np.split(numbers, np.cumsum(agreed)[:-1])
    first_own = np.maximum(shared, [len(rows) for rows in known])
    positions = np.arange(lengths.max())
    own = (first_own[:, None] <= positions) & (positions < lengths[:, None])  # [B, S]
    unpad_index = np.flatnonzero(own)
    pad_index = np.zeros(own.shape, np.int64)
    pad_index[own] = num_given + np.arange(len(unpad_index))
    for row, rows in zip(pad_index, known, strict=True):
        row[: len(rows)] = rows
    for before, row, common in zip(pad_index, pad_index[1:], shared[1:], strict=False):
        row[:common] = before[:common]
    input_ids = np.concatenate(
        [sequences[path.members[-1]][first:] for path, first in zip(paths, first_own, strict=True)]
    )

    tokens_of = {index: row for path, row in zip(paths, pad_index, strict=True) for index in path.members}
    scored = [tokens_of[index][starts[index] + 1 : len(sequences[index])] for index in members]
    is_scored = np.zeros(num_given + len(input_ids), np.bool_)
    for rows in scored:
        is_scored[rows] = True
    targets = np.flatnonzero(is_scored[num_given:])  # into input_ids: given tokens have their log-probs
    # The token before each; meaningless for a first token.
    before_each = pad_index.reshape(-1)[unpad_index - 1]
    targets = targets[np.argsort(before_each[targets], kind="stable")]
    ends = pad_index[np.arange(len(paths)), lengths - 1] if keeps_rows else NO_INDEX
    scored_rows = np.union1d(before_each[targets], ends)
    result_of = np.arange(num_given + len(input_ids))
    result_of[num_given + targets] = num_given + np.arange(len(targets))
    return Batch(
        input_ids=input_ids,
        pad_index=pad_index,
        unpad_index=unpad_index,
        seqlens_k=(lengths - 1).astype(np.int32),
        score_index=scored_rows[scored_rows >= num_given] - num_given,
        given_scored=scored_rows[scored_rows < num_given],
        target_rows=np.searchsorted(scored_rows, before_each[targets]),
        target_ids=input_ids[targets],
        target_of=tuple(result_of[rows] for rows in scored),
        target_index=targets,
        paths=tuple(sequences[path.members[-1]] for path in paths),
        given_rows=given_rows,
        leases=tuple(match.lease for match in matches if match.lease is not None),
        few=FewQueries.of(pad_index, unpad_index, lengths, agreed) if keeps_rows else None,
    )

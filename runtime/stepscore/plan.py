"""Sequences -> packed batches: which token is computed where, and what is scored. Pure index arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Int64 = NDArray[np.int64]

MAX_PADDING = 4
"""A batch's padded view has at most this many times the positions of its token budget."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences of n tokens together, m scored rows and t >= m (row, token) pairs to score.

    `input_ids` int64 [n] are the rows; `pad_index` int64 [B, S] names the row of every position of the
    padded view (0 where there is none); `unpad_index` int64 [n] names a position b * S + s of every row;
    `seqlens_k` int32 [B] is each length - 1; `score_index` int64 [m] names the rows whose next token is
    scored; `target_rows` int64 [t] (ascending, into score_index) and `target_ids` int64 [t] are the pairs.
    `spans[b]` is the slice of the pairs that belongs to sequence b, in order.
    """

    input_ids: Int64
    pad_index: Int64
    unpad_index: Int64
    seqlens_k: NDArray[np.int32]
    score_index: Int64
    target_rows: Int64
    target_ids: Int64
    spans: tuple[slice, ...]

    @property
    def total_sequence_length(self) -> NDArray[np.int32]:
        """Return S as the scalar that GroupQueryAttention wants."""
        return np.array(self.pad_index.shape[1], np.int32)


def pack(sequences: Sequence[Int64], starts: Sequence[int]) -> Batch:
    """Pack whole sequences side by side; sequence b is scored from log-prob index starts[b] on.

    Log-prob j of a sequence scores its token j + 1, so a sequence of L tokens has the log-probs
    starts[b] .. L - 2. Raises ValueError for a sequence under 2 tokens or a start outside 0 .. L - 2.

    >>> batch = pack([np.array([5, 6, 7]), np.array([8, 9])], [1, 0])
    >>> batch.input_ids.tolist(), batch.pad_index.tolist(), batch.unpad_index.tolist()
    ([5, 6, 7, 8, 9], [[0, 1, 2], [3, 4, 0]], [0, 1, 2, 3, 4])
    >>> batch.score_index.tolist(), batch.target_ids.tolist(), batch.spans
    ([1, 3], [7, 9], (slice(0, 1, None), slice(1, 2, None)))
    """
    for sequence, start in zip(sequences, starts, strict=True):
        if not 0 <= start <= len(sequence) - 2:
            raise ValueError(f"start {start} is outside the log-probs of {len(sequence)} tokens")
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest = int(lengths.max())
    inside = np.arange(longest) < lengths[:, None]  # [B, S]
    scored = [np.arange(o + s, o + n - 1) for o, s, n in zip(offsets, starts, lengths, strict=True)]
    score_index = np.concatenate(scored)
    ends = np.cumsum([len(rows) for rows in scored])
    return Batch(
        input_ids=np.concatenate(sequences),
        pad_index=np.where(inside, offsets[:, None] + np.arange(longest), 0),
        unpad_index=np.flatnonzero(inside),
        seqlens_k=(lengths - 1).astype(np.int32),
        score_index=score_index,
        target_rows=np.arange(len(score_index)),
        target_ids=np.concatenate([ids[s + 1 :] for ids, s in zip(sequences, starts, strict=True)]),
        spans=tuple(slice(int(end) - len(rows), int(end)) for end, rows in zip(ends, scored, strict=True)),
    )


def budgeted(items: Iterable[T], length: Callable[[T], int], max_tokens: int) -> Iterator[list[T]]:
    """Group consecutive items so that a group holds at most `max_tokens` tokens; a longer item goes alone.

    The padded view of a group stays within MAX_PADDING * max_tokens positions. Order is kept, and items of
    length 0 change nothing: the others are grouped as if they were not there.

    >>> list(budgeted([3, 4, 9, 1, 1], length=lambda n: n, max_tokens=7))
    [[3, 4], [9], [1, 1]]
    """
    group: list[T] = []
    count = total = longest = 0
    for item in items:
        size = length(item)
        if not size and not count:
            yield [item]
            continue
        padded = (count + 1) * max(longest, size)
        if count and size and (total + size > max_tokens or padded > MAX_PADDING * max_tokens):
            yield group
            group, count, total, longest = [], 0, 0, 0
        group.append(item)
        count, total, longest = count + (size > 0), total + size, max(longest, size)
    if group:
        yield group


def chunks(batch: Batch, max_rows: int) -> Iterator[tuple[slice, Int64, Int64]]:
    """Cut the scored rows into chunks for the head.

    Yields (slice of the pairs, rows int64 [c], targets int64 [p, 2]) where targets are (index into rows,
    token id).

    >>> batch = pack([np.array([5, 6, 7, 8])], [0])
    >>> [(part, rows.tolist(), targets.tolist()) for part, rows, targets in chunks(batch, 2)]
    [(slice(0, 2, None), [0, 1], [[0, 6], [1, 7]]), (slice(2, 3, None), [2], [[0, 8]])]
    """
    for first in range(0, len(batch.score_index), max_rows):
        rows = np.arange(first, min(first + max_rows, len(batch.score_index)))
        low, high = np.searchsorted(batch.target_rows, [first, first + len(rows)])
        part = slice(int(low), int(high))
        yield part, rows, np.stack([batch.target_rows[part] - first, batch.target_ids[part]], axis=-1)

"""Sequences -> packed batches: which token is computed where, and what is scored. Pure index arithmetic.

A window of sequences is a trie: sequences that begin alike pass through the same nodes, and each node, a
distinct prefix, is computed once, as one row. Attention sees the sequences as lines of a padded view, in
which a shared row stands several times; causality makes its copies equal. A sequence that is the beginning of
another needs no line of its own.

    7 8 9        rows        7 8 9 4 5           line 0   7 8 9
    7 8 4 5      (input_ids)                     line 1   7 8 4 5        7 8 are the same two rows
    7 8          no line: it lies on line 0
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

MAX_PADDING = 4
"""A batch's padded view has at most this many times the positions of its token budget."""
SHORT_TOKENS = 1024
"""Up to this length attention holds its scores, [B, S, S] a head; longer sequences take another kernel."""
MAX_SCORES = 2 << 20
"""B * S * S of a batch of short sequences on the CPU; CUDA's kernels never hold scores."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The n distinct prefixes of some sequences, B lines of at most S positions, m scored rows, t pairs.

    `input_ids` int64 [n] are the rows; `pad_index` int64 [B, S] names the row of every position of the
    padded view (0 where there is none); `unpad_index` int64 [n] names a position b * S + s of every row;
    `seqlens_k` int32 [B] is each line's length - 1; `score_index` int64 [m] names the rows whose next token
    is scored; `target_rows` int64 [t] (ascending, into score_index) and `target_ids` int64 [t] are the
    distinct (row, token) pairs. `pairs[i]` int64 are the indices into the pairs of the log-probs of
    sequence i, in order; sequences that begin alike share pairs.
    """

    input_ids: Int64
    pad_index: Int64
    unpad_index: Int64
    seqlens_k: NDArray[np.int32]
    score_index: Int64
    target_rows: Int64
    target_ids: Int64
    pairs: tuple[Int64, ...]

    @property
    def total_sequence_length(self) -> NDArray[np.int32]:
        """Return S as the scalar that GroupQueryAttention wants."""
        return np.array(self.pad_index.shape[1], np.int32)


@dataclass(frozen=True, slots=True)
class Group:
    """A batch of a window: `members[i]` is the window's sequence that `batch.pairs[i]` belongs to."""

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
    >>> [pairs.tolist() for pairs in batch.pairs]
    [[1], [0, 2, 3], [0]]
    """
    if not sequences:
        raise ValueError("there is nothing to pack")
    _check_starts(sequences, starts)
    members = range(len(sequences))
    return _packed(sequences, starts, list(_lines(sequences, members, share=share)), members)


def plan(
    sequences: Sequence[Int64],
    starts: Sequence[int],
    max_tokens: int,
    *,
    share: bool = True,
    holds_scores: bool = True,
) -> list[Group]:
    """Cut a window into batches; each sequence is a member of one group.

    A batch has at most `max_tokens` rows and MAX_PADDING * max_tokens positions (B * S), or one line. What
    lines of two batches share is computed in both. Sequences up to SHORT_TOKENS and longer ones are never in
    one batch, so that the kernel which computes a sequence does not depend on its neighbours; short ones are
    also kept within MAX_SCORES where attention `holds_scores`. The trie is walked depth first, children
    in the order of their first sequence in the window, and batches are in the order of theirs: results come
    out early where related sequences are neighbours, which they need not be. Starts, `share` and errors are
    those of `pack`.

    >>> window = [np.array([7, 8, 9]), np.array([1, 2]), np.array([7, 8, 4, 5])]
    >>> [group.members for group in plan(window, [0, 0, 0], max_tokens=5)]
    [(0, 2), (1,)]
    """
    _check_starts(sequences, starts)
    is_long = np.array([len(sequence) > SHORT_TOKENS for sequence in sequences], np.bool_)
    groups = []
    for kind in (np.flatnonzero(~is_long), np.flatnonzero(is_long)):
        for lines in _cut(
            _lines(sequences, kind.tolist(), share=share), max_tokens, holds_scores=holds_scores
        ):
            members = tuple(sorted(member for line in lines for member in line.members))
            groups.append(Group(members, _packed(sequences, starts, lines, members)))
    return sorted(groups, key=lambda group: group.members[0])


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


def _check_starts(sequences: Sequence[Int64], starts: Sequence[int]) -> None:
    for sequence, start in zip(sequences, starts, strict=True):
        if not 0 <= start <= len(sequence) - 2:
            raise ValueError(f"start {start} is outside the log-probs of {len(sequence)} tokens")


# The trie


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the padded view: the sequences that lie on it, the one that fills it last.

    Its first `shared` tokens are those of the line before it.
    """

    members: Sequence[int]
    length: int
    shared: int


@dataclass(slots=True)
class _Node:
    """Where sequences end or part, `depth` tokens from the root; `first` is the first to come here."""

    depth: int
    first: int = sys.maxsize
    ending: list[int] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)


def _lines(sequences: Sequence[Int64], chosen: Sequence[int], *, share: bool) -> Iterator[_Line]:
    """Walk the trie of the chosen sequences depth first; without `share`, each is a line by itself."""
    if not share:
        yield from (_Line([index], len(sequences[index]), 0) for index in chosen)
        return
    # A node, what its first line shares with the line before, and the sequences of that line so far.
    waiting: list[tuple[_Node, int, list[int]]] = [(_trie(sequences, chosen), 0, [])] if chosen else []
    while waiting:
        node, shared, members = waiting.pop()
        members += node.ending
        if not node.children:
            yield _Line(members, node.depth, shared)
            continue
        heir, *others = sorted(node.children, key=lambda child: child.first)
        waiting += ((child, node.depth, []) for child in reversed(others))
        waiting.append((heir, shared, members))


def _trie(sequences: Sequence[Int64], chosen: Iterable[int]) -> _Node:
    """Return the root; in lexicographic order each sequence leaves the path of the one before."""
    keys = {index: sequences[index].astype(">i8").tobytes() for index in chosen}  # bytes compare as tokens
    path = [_Node(0)]
    before = np.empty(0, np.int64)
    for index in sorted(keys, key=keys.__getitem__):
        sequence = sequences[index]
        _close(path, _common_length(before, sequence))
        if path[-1].depth < len(sequence):
            path.append(_Node(len(sequence)))
        path[-1].ending.append(index)
        path[-1].first = min(path[-1].first, index)
        before = sequence
    _close(path, 0)
    return path[0]


def _close(path: list[_Node], depth: int) -> None:
    """Hand the nodes deeper than `depth` to their parents; the path then ends with a node at `depth`."""
    while path[-1].depth > depth:
        node = path.pop()
        if path[-1].depth < depth:
            path.append(_Node(depth))
        path[-1].children.append(node)
        path[-1].first = min(path[-1].first, node.first)


def _common_length(one: Int64, other: Int64) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if different.size else length


# Batches


def _cut(lines: Iterable[_Line], max_tokens: int, *, holds_scores: bool) -> Iterator[list[_Line]]:
    """Group consecutive lines as far as the budgets go; the first line of a group shares nothing."""
    group: list[_Line] = []
    rows = longest = 0
    for line in lines:
        width = max(longest, line.length)
        padded = (len(group) + 1) * width
        if group and (
            rows + line.length - line.shared > max_tokens
            or padded > MAX_PADDING * max_tokens
            or (holds_scores and width <= SHORT_TOKENS and padded * width > MAX_SCORES)
        ):
            yield group
            group, rows, longest = [], 0, 0
        placed = line if group else replace(line, shared=0)
        group.append(placed)
        rows += placed.length - placed.shared
        longest = max(longest, placed.length)
    if group:
        yield group


def _packed(
    sequences: Sequence[Int64], starts: Sequence[int], lines: Sequence[_Line], members: Sequence[int]
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
        pairs=tuple(pair_of[rows] for rows in scored),
    )

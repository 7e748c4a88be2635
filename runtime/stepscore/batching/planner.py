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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from stepscore.artifact.graph_contract import SHORT_TOKENS
from stepscore.batching.batch import BatchGroup, check_starts, pack_lines
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.batching.trie import Int64, Line, depth_first_lines

MAX_PADDING = 4
"""A batch's padded view has at most this many times the positions of its token budget."""
MAX_SCORES = 2 << 20
"""B * S * S of a batch of short sequences on the CPU; CUDA's kernels never hold scores."""


def plan(
    sequences: Sequence[Int64],
    starts: Sequence[int],
    max_tokens: int,
    *,
    share: bool = True,
    materializes_scores: bool = True,
    given: GivenRows = NO_ROWS,
) -> list[BatchGroup]:
    """Cut a window into batches; each sequence is a member of one group.

    A batch has at most `max_tokens` rows and MAX_PADDING * max_tokens positions (B * S), or one line. What
    lines of two batches share is computed in both. Sequences up to SHORT_TOKENS and longer ones are never
    in one batch, so that the kernel which computes a sequence does not depend on its neighbours; short ones
    are also kept within MAX_SCORES where attention `materializes_scores`. The trie is walked depth first,
    children in the order of their first sequence in the window, and batches are in the order of theirs:
    results come out early where related sequences are neighbours, which they need not be. Starts, `share`,
    `given` and errors are those of `pack`; rows that are given still count as computed ones here.

    >>> window = [np.array([7, 8, 9]), np.array([1, 2]), np.array([7, 8, 4, 5])]
    >>> [group.members for group in plan(window, [0, 0, 0], max_tokens=5)]
    [(0, 2), (1,)]
    """
    check_starts(sequences, starts)
    is_long = np.array([len(sequence) > SHORT_TOKENS for sequence in sequences], np.bool_)
    groups = []
    for kind in (np.flatnonzero(~is_long), np.flatnonzero(is_long)):
        for lines in _cut(
            depth_first_lines(sequences, kind.tolist(), share=share),
            max_tokens,
            materializes_scores=materializes_scores,
        ):
            members = tuple(sorted(member for line in lines for member in line.members))
            groups.append(BatchGroup(members, pack_lines(sequences, starts, lines, members, given)))
    return sorted(groups, key=lambda group: group.members[0])


def _cut(lines: Iterable[Line], max_tokens: int, *, materializes_scores: bool) -> Iterator[list[Line]]:
    """Group consecutive lines as far as the budgets go; the first line of a group shares nothing."""
    group: list[Line] = []
    rows = longest = 0
    for line in lines:
        width = max(longest, line.length)
        padded = (len(group) + 1) * width
        if group and (
            rows + line.length - line.shared > max_tokens
            or padded > MAX_PADDING * max_tokens
            or (materializes_scores and width <= SHORT_TOKENS and padded * width > MAX_SCORES)
        ):
            yield group
            group, rows, longest = [], 0, 0
        placed = line if group else replace(line, shared=0)
        group.append(placed)
        rows += placed.length - placed.shared
        longest = max(longest, placed.length)
    if group:
        yield group

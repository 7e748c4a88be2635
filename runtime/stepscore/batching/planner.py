"""Plan a window of sequences into packed batches with prefix sharing. Pure index arithmetic.

The sequences of a window form a trie: a common prefix is one path of nodes, and each node, a distinct prefix,
is computed once, as one packed token. Attention reads the tokens through a padded view with one sequence per
leaf path, in which a shared token occurs several times; causality makes all occurrences equal. A sequence
that is a prefix of another lies on its path.

    7 8 9        packed tokens   7 8 9 4 5       padded view   7 8 9
    7 8 4 5      (input_ids)                                   7 8 4 5      both begin with tokens 0 and 1
    7 8          a prefix of the first path
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from stepscore.artifact.graph_contract import SHORT_TOKENS
from stepscore.batching.batch import BatchGroup, check_starts, match_of, pack_paths
from stepscore.batching.given_rows import NO_ROWS, Given, Match
from stepscore.batching.trie import Int64, LeafPath, leaf_paths

MAX_PADDING = 4
"""Limit of a batch's padded view: this many positions per token of its budget."""
MAX_SCORES = 2 << 20
"""Limit of B * S * S for a batch of short sequences on the CPU; CUDA kernels do not materialize scores."""


def plan(
    sequences: Sequence[Int64],
    starts: Sequence[int],
    max_tokens: int,
    *,
    share: bool = True,
    materializes_scores: bool = True,
    given: Given = NO_ROWS,
) -> list[BatchGroup]:
    """Cut a window into batches; each sequence is a member of one batch.

    A batch has at most `max_tokens` computed tokens and MAX_PADDING * max_tokens positions (B * S), or a
    single path. A prefix common to two batches is computed in both. Sequences up to SHORT_TOKENS and longer
    ones are never in one batch, so that the kernel which computes a sequence does not depend on its
    neighbours; short ones are also kept within MAX_SCORES where attention `materializes_scores`. The trie is
    walked depth first, children in the order of their first sequence in the window, and batches are in the
    order of theirs: results come early for neighbours in the window. `starts`, `share`, `given` and errors
    are those of `pack`; given tokens are not computed, so the budget does not count them.

    >>> window = [np.array([7, 8, 9]), np.array([1, 2]), np.array([7, 8, 4, 5])]
    >>> [group.members for group in plan(window, [0, 0, 0], max_tokens=5)]
    [(0, 2), (1,)]
    """
    check_starts(sequences, starts)
    is_long = np.array([len(sequence) > SHORT_TOKENS for sequence in sequences], np.bool_)
    groups = []
    for kind in (np.flatnonzero(~is_long), np.flatnonzero(is_long)):
        found = (
            (path, match_of(given, path, sequences, starts))
            for path in leaf_paths(sequences, kind.tolist(), share=share)
        )
        for cut in _cut(found, max_tokens, materializes_scores=materializes_scores):
            paths, matches = zip(*cut, strict=True)
            members = tuple(sorted(member for path in paths for member in path.members))
            batch = pack_paths(sequences, starts, paths, members, matches, keeps_rows=given.keeps_rows)
            groups.append(BatchGroup(members, batch))
    return sorted(groups, key=lambda group: group.members[0])


def _cut(
    paths: Iterable[tuple[LeafPath, Match]], max_tokens: int, *, materializes_scores: bool
) -> Iterator[list[tuple[LeafPath, Match]]]:
    """Group consecutive paths within the budgets; the first path of a group shares no prefix."""
    group: list[tuple[LeafPath, Match]] = []
    tokens = longest = 0
    for path, match in paths:
        width = max(longest, path.length)
        padded = (len(group) + 1) * width
        if group and (
            tokens + path.length - max(path.shared, len(match.rows)) > max_tokens
            or padded > MAX_PADDING * max_tokens
            or (materializes_scores and width <= SHORT_TOKENS and padded * width > MAX_SCORES)
        ):
            yield group
            group, tokens, longest = [], 0, 0
        placed = path if group else replace(path, shared=0)
        group.append((placed, match))
        tokens += placed.length - max(placed.shared, len(match.rows))
        longest = max(longest, placed.length)
    if group:
        yield group

"""Rows that are known before a window is planned: nothing computes them again.

Every record of a pair begins with the tokens of its chat template up to the problem. Their keys and values
are part of the pair, computed from the original weights, and attention reads them as rows in front of those
that a batch computes. Where prefixes of earlier calls are kept, their rows are given in the same way
(kept_prefixes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stepscore.artifact.prefix import Prefix
from stepscore.batching.trie import Int64, common_length


@dataclass(frozen=True, slots=True)
class Match:
    """The given rows that a sequence begins with: ids of rows that the engine knows, int64 [c].

    They stay what they are as long as the `lease` exists; None: for good.
    """

    rows: Int64
    lease: object = None


class Given(Protocol):
    """Rows that batches may be planned with."""

    @property
    def keeps_rows(self) -> bool:
        """Whether the rows that a batch computes may be given to later ones."""

    def match(self, sequence: Int64, start: int) -> Match:
        """Return the rows of the longest usable prefix of a sequence [L], at most all but its last token.

        Log-probs are wanted from index `start` on: given rows beyond it must have their own, and be readable
        by the head.
        """


@dataclass(frozen=True, slots=True)
class GivenRows:
    """A path of g tokens from the start of a sequence; row r is that of the prefix token_ids[: r + 1].

    >>> GivenRows(np.array([7, 8, 9])).match(np.array([7, 8, 4])).rows.tolist()
    [0, 1]
    """

    token_ids: Int64

    @classmethod
    def of(cls, prefix: Prefix | None) -> GivenRows:
        """Return the rows of a pair's prefix, none where it has none."""
        return NO_ROWS if prefix is None else cls(prefix.token_ids)

    @property
    def keeps_rows(self) -> bool:
        """Return False: these rows are all there ever are."""
        return False

    def __len__(self) -> int:
        """Return g."""
        return len(self.token_ids)

    def match(self, sequence: Int64, start: int = 0) -> Match:
        """Return the given rows that a sequence [L] begins with; all have a log-prob and a hidden state."""
        return Match(np.arange(min(common_length(self.token_ids, sequence), len(sequence) - 1)))


NO_ROWS = GivenRows(np.empty(0, np.int64))


def agree(known: Sequence[int], shared: Sequence[int]) -> list[int]:
    """Cut matches until consecutive paths agree on which rows of their common prefix are given.

    Path i has `known[i]` given rows and its first `shared[i]` tokens in common with the path before. Matches
    differ within a common prefix where log-probs are wanted from different indices on, or where rows were
    added between two matches.

    >>> agree([5, 3], [0, 4]), agree([3, 5], [0, 4]), agree([5, 3], [0, 2])
    ([3, 3], [3, 3], [5, 3])
    """
    agreed = list(known)
    for index in range(len(agreed) - 1, 0, -1):
        if agreed[index] < shared[index]:
            agreed[index - 1] = min(agreed[index - 1], agreed[index])
    for index in range(1, len(agreed)):
        if agreed[index - 1] < shared[index]:
            agreed[index] = min(agreed[index], agreed[index - 1])
    return agreed

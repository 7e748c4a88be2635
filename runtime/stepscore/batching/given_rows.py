"""Rows that are known before a window is planned: nothing computes them again.

Every record of a pair begins with the tokens of its chat template up to the problem. Their keys and values
are part of the pair, computed from the original weights, and attention reads them as rows in front of those
that a batch computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepscore.artifact.prefix import Prefix
from stepscore.batching.trie import Int64, common_length


@dataclass(frozen=True, slots=True)
class GivenRows:
    """A path of g tokens from the start of a sequence; row r is that of the prefix token_ids[: r + 1].

    >>> GivenRows(np.array([7, 8, 9])).match(np.array([7, 8, 4])).tolist()
    [0, 1]
    """

    token_ids: Int64

    @classmethod
    def of(cls, prefix: Prefix | None) -> GivenRows:
        """Return the rows of a pair's prefix, none where it has none."""
        return NO_ROWS if prefix is None else cls(prefix.token_ids)

    def __len__(self) -> int:
        """Return g."""
        return len(self.token_ids)

    def match(self, sequence: Int64) -> Int64:
        """Return the given rows that a sequence [L] begins with, int64 [c]: all but its last token may be."""
        return np.arange(min(common_length(self.token_ids, sequence), len(sequence) - 1))


NO_ROWS = GivenRows(np.empty(0, np.int64))

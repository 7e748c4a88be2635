"""Attention of few queries to many keys: of a batch most of whose rows are given.

A kernel that reads queries, keys and values from one padded view [B, S] computes S x S scores for each
sequence. Where rows are given, only those of the last positions are needed: Q x S scores, Q being the most
computed positions of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

MAX_SCORES = 1 << 19
"""Limit of B * Q * S: scores are materialized, four arrays of them, also those of long sequences."""
NEVER = np.float32(-1e30)
"""Added to the score of a key that a query must not see; its weight is exactly 0."""


@dataclass(frozen=True, slots=True)
class FewQueries:
    """A view of the computed positions: `queries` int64 [B, Q] are packed tokens, 0 for padding.

    `positions` int64 [B, Q] are theirs in the sequence, `mask` float32 [B, Q, S] is added to the scores of
    the S keys, those of the first view. `unpad_index` int64 [n] is a position b * Q + q of each
    computed token.
    """

    queries: Int64
    positions: Int64
    mask: NDArray[np.float32]
    unpad_index: Int64

    @classmethod
    def of(
        cls, pad_index: Int64, unpad_index: Int64, lengths: Int64, known: Sequence[int]
    ) -> FewQueries | None:
        """Return the view of a batch whose sequences have `known` given rows; None where it saves too little.

        >>> few = FewQueries.of(np.array([[0, 1, 2], [0, 1, 3]]), np.array([2, 5]), np.array([3, 3]), [2, 2])
        >>> few.queries.tolist(), few.positions.tolist(), few.unpad_index.tolist()
        ([[2], [3]], [[2], [2]], [0, 1])
        """
        first = np.asarray(known)
        size, length = int((lengths - first).max()), pad_index.shape[1]
        if 2 * size > length or len(pad_index) * size * length > MAX_SCORES:
            return None
        positions = first[:, None] + np.arange(size)  # [B, Q]
        is_there = positions < lengths[:, None]
        positions = np.where(is_there, positions, 0)
        queries = np.take_along_axis(pad_index, positions, axis=1) * is_there
        mask = np.where(np.arange(length) <= positions[:, :, None], np.float32(0), NEVER)
        row, position = np.divmod(unpad_index, length)
        return cls(queries, positions, mask, row * size + position - first[row])

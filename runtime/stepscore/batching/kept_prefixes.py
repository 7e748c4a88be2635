"""Prefixes that are kept from batch to batch: which rows there are, and which go first. Holds no values.

A search calls again and again with texts that grow. The rows that a batch computes are kept in a fixed number
of slots, and a later batch that begins with the same tokens is given them (given_rows.py). An engine has the
values of the rows by their ids: those of the pair's prefix come first and stay, behind them are the slots.

    match       planning: the rows of a sequence's longest usable prefix, held by a lease
    reserve     before a batch runs: slots for what it computes; the least recently used rows make room
    commit      after it ran: its rows can be matched
    release     it failed: the slots are free again

A row can always be attended to. Where its own log-prob is wanted, it is used only if that is known, and
where the next token's is, only if its hidden state is, which the head reads. Rows that lack them are computed
again, and then have them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import Given, Match
from stepscore.batching.kept_trie import KeptTrie, Node, rows_of
from stepscore.batching.trie import Int64


@dataclass(frozen=True, slots=True)
class Keeping:
    """What of a batch is kept, and as which rows: pairs of int64 arrays of equal length.

    `computed[i]`, an index into the batch's n computed tokens, becomes row `slots[i]`. Of what the batch
    gives, hidden state `hidden[i]` (an index into its k + m scored tokens) is that of row `hidden_rows[i]`,
    log-prob `logprobs[i]` (an index into its g + t) that of `logprob_rows[i]`.
    """

    computed: Int64
    slots: Int64
    hidden: Int64
    hidden_rows: Int64
    logprobs: Int64
    logprob_rows: Int64
    lease: object

    def slot_of(self, batch: Batch) -> Int64:
        """Return the slot of each packed token, -1 for those that have none: int64 [g + n]."""
        slots = np.full(batch.num_given + len(batch.input_ids), -1)
        slots[batch.num_given + self.computed] = self.slots
        return slots


@dataclass(frozen=True, slots=True)
class KeptCounts:
    """How full the slots are, and what they were good for."""

    capacity: int
    """Slots."""
    kept: int
    """Slots in use."""
    given: int
    """Tokens of all batches that were not computed, as they were kept: a prefix counts once a batch."""
    computed: int
    """Tokens of all batches that were computed."""
    bytes_per_token: int
    """Memory of a slot."""

    @property
    def num_bytes(self) -> int:
        """Return the memory of the slots in use."""
        return self.kept * self.bytes_per_token


class _Lease:
    """Pins nodes for as long as it exists; it may end in any thread, also while that holds the lock."""

    __slots__ = ("_ended", "_nodes")

    def __init__(self, nodes: Sequence[Node], ended: deque[Sequence[Node]]) -> None:
        self._nodes, self._ended = nodes, ended
        for node in nodes:
            node.pins += 1

    def __del__(self) -> None:
        self._ended.append(self._nodes)


class KeptPrefixes:
    """Kept rows in `capacity` slots, behind the permanent rows of a path of tokens; safe in several threads.

    >>> kept = KeptPrefixes(100, np.array([7, 8]))
    >>> kept.match(np.array([7, 8, 9, 10]), 0).rows.tolist()
    [0, 1]
    """

    def __init__(self, capacity: int, prefix: Int64, *, bytes_per_token: int = 0) -> None:
        self._capacity, self._num_permanent = capacity, len(prefix)
        self._bytes_per_token = bytes_per_token
        self._trie = KeptTrie()
        self._trie.add(prefix, np.arange(len(prefix)))
        for node in self._trie.nodes():
            node.pins += 1
        num_rows = len(prefix) + capacity
        self._free = list(range(num_rows - 1, len(prefix) - 1, -1))
        self._has_hidden: NDArray[np.bool_] = np.arange(num_rows) < len(prefix)
        self._has_logprob: NDArray[np.bool_] = self._has_hidden.copy()
        self._ended: deque[Sequence[Node]] = deque()
        self._lock = threading.Lock()
        self._given = self._computed = 0

    @property
    def keeps_rows(self) -> bool:
        """Return True."""
        return True

    @property
    def counts(self) -> KeptCounts:
        """Return how full the slots are, and what they were good for."""
        with self._lock:
            kept = self._capacity - len(self._free)
            return KeptCounts(self._capacity, kept, self._given, self._computed, self._bytes_per_token)

    def match(self, sequence: Int64, start: int) -> Match:
        """Return the rows of the longest usable prefix of a sequence [L], at most all but its last token.

        Log-probs are wanted from index `start` on.
        """
        with self._lock:
            self._unpin()
            passed = self._trie.walk(sequence[:-1])
            rows = rows_of(passed)
            unusable = ~self._has_hidden[rows]
            unusable[:start] = False
            unusable[start + 1 :] |= ~self._has_logprob[rows[start + 1 :]]
            if unusable.any():
                rows = rows[: int(unusable.argmax())]
            ends = np.cumsum([length for _, length in passed])
            last = int(np.searchsorted(ends, len(rows)))
            return Match(rows, _Lease([passed[last][0]], self._ended) if len(rows) else None)

    def reserve(self, batch: Batch) -> Keeping:
        """Return slots for the rows of a batch that are not kept yet, as far as there is room."""
        g = batch.num_given
        num_packed = g + len(batch.input_ids)
        is_scored, is_target, is_new = (np.zeros(num_packed, np.bool_) for _ in range(3))
        is_scored[g + batch.score_index] = is_target[g + batch.target_index] = True
        row_of = np.full(num_packed, -1)  # of packed tokens: their row, new or old
        with self._lock:
            self._unpin()
            self._given += int((batch.given_rows >= self._num_permanent).sum())
            self._computed += len(batch.input_ids)
            walks = [self._trie.walk(path) for path in batch.paths]
            lease = _Lease([node for passed in walks for node, _ in passed], self._ended)
            for passed, path, line in zip(walks, batch.paths, batch.pad_index, strict=True):
                old = rows_of(passed)
                row_of[line[: len(old)]] = old
                is_new[line[len(old) : len(path)]] = True
            is_new[:g] = False
            new = np.flatnonzero(is_new & (row_of < 0))
            slots = self._take(len(new))
            new = new[: len(slots)]
            row_of[new] = slots
            self._has_hidden[slots] = self._has_logprob[slots] = False
            hidden = is_scored & (row_of >= 0) & ~self._has_hidden[row_of]
            logprobs = is_target & (row_of >= 0) & ~self._has_logprob[row_of]
        of_hidden = len(batch.given_scored) + np.flatnonzero(hidden[g + batch.score_index])
        of_target = np.flatnonzero(logprobs[g + batch.target_index])
        return Keeping(
            computed=new - g,
            slots=slots,
            hidden=of_hidden,
            hidden_rows=row_of[g + batch.score_index[of_hidden - len(batch.given_scored)]],
            logprobs=g + of_target,
            logprob_rows=row_of[g + batch.target_index[of_target]],
            lease=lease,
        )

    def commit(self, batch: Batch, keeping: Keeping) -> None:
        """Make the rows of a batch that ran findable."""
        slot_of = keeping.slot_of(batch)
        used = np.zeros(len(slot_of), np.bool_)
        with self._lock:
            self._unpin()
            self._has_hidden[keeping.hidden_rows] = True
            self._has_logprob[keeping.logprob_rows] = True
            for path, line in zip(batch.paths, batch.pad_index, strict=True):
                known = sum(length for _, length in self._trie.walk(path))
                packed = line[known : len(path)]
                without = np.append(slot_of[packed] < 0, True)
                packed = packed[: int(without.argmax())]
                self._trie.add(path[: known + len(packed)], slot_of[packed])
                used[packed] = True
            self._free += slot_of[(slot_of >= 0) & ~used].tolist()

    def release(self, keeping: Keeping) -> None:
        """Free the slots of a batch that failed."""
        with self._lock:
            self._free += keeping.slots.tolist()

    def _take(self, num_rows: int) -> Int64:
        """Return up to so many free slots, after rows were evicted for them."""
        if len(self._free) < num_rows:
            self._free += self._trie.evict(num_rows - len(self._free))
        taken = [self._free.pop() for _ in range(min(num_rows, len(self._free)))]
        return np.array(taken, np.int64)

    def _unpin(self) -> None:
        while self._ended:
            for node in self._ended.popleft():
                node.pins -= 1


@contextmanager
def keeping(given: Given, batches: Sequence[Batch]) -> Iterator[list[Keeping | None]]:
    """Say what of batches to keep while they run; it can be matched afterwards, unless they fail.

    None for each batch where nothing is kept.
    """
    if not isinstance(given, KeptPrefixes):
        yield [None] * len(batches)
        return
    reserved: list[Keeping] = []
    try:
        for batch in batches:
            reserved.append(given.reserve(batch))
        yield list(reserved)
    except BaseException:
        for each in reserved:
            given.release(each)
        raise
    for batch, each in zip(batches, reserved, strict=True):
        given.commit(batch, each)

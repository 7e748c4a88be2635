"""Kept prefixes: rows found are those of the tokens, within the budget, the least recently used go first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from numpy.typing import NDArray

from stepscore.batching.batch import Batch, pack
from stepscore.batching.kept_prefixes import KeptCounts, KeptPrefixes, keeping
from stepscore.batching.kept_trie import KeptTrie, Node

Ids = NDArray[np.int64]
Prefix = tuple[int, ...]
PREFIX: Prefix = (0, 1)
CAPACITY = 12
sequences = st.lists(
    st.lists(st.integers(0, 2), min_size=2, max_size=7).map(lambda tail: np.array([*PREFIX, *tail][:8])),
    min_size=1,
    max_size=4,
)


@dataclass(frozen=True)
class Planned:
    """A batch that was planned, for what, and what its given rows were then."""

    batch: Batch
    sequences: Sequence[Ids]
    starts: Sequence[int]


class Engine(RuleBasedStateMachine):
    """An engine whose values of a row are the tokens up to it; batches fail, run late and are abandoned."""

    planned = Bundle("planned")

    def __init__(self) -> None:
        super().__init__()
        self.kept = KeptPrefixes(CAPACITY, np.array(PREFIX))
        self.values = {row: PREFIX[: row + 1] for row in range(len(PREFIX))}
        self.hidden, self.logprobs = set(self.values), set(self.values)

    @rule(target=planned, sequences=sequences, data=st.data(), share=st.booleans())
    def plan(self, sequences: list[Ids], data: st.DataObject, share: bool) -> Planned:
        starts = [data.draw(st.integers(0, len(each) - 2)) for each in sequences]
        return Planned(pack(sequences, starts, share=share, given=self.kept), sequences, starts)

    @rule(planned=consumes(planned), fails=st.integers(0, 3).map(lambda number: number == 0))
    def run(self, planned: Planned, fails: bool) -> None:
        batch = planned.batch
        prefixes = self.prefixes(batch)
        self.check_targets(planned, prefixes)
        if fails:
            with pytest.raises(RuntimeError), keeping(self.kept, [batch]):
                raise RuntimeError
            return
        with keeping(self.kept, [batch]) as (keep,):
            assert keep is not None
            for index, slot in zip(keep.computed, keep.slots, strict=True):
                self.values[int(slot)] = prefixes[batch.num_given + int(index)]
                self.hidden.discard(int(slot))
                self.logprobs.discard(int(slot))
            scored = [*batch.given_scored, *(batch.num_given + batch.score_index)]
            for index, row in zip(keep.hidden, keep.hidden_rows, strict=True):
                assert self.values[int(row)] == prefixes[int(scored[index])]
                self.hidden.add(int(row))
            for index, row in zip(keep.logprobs - batch.num_given, keep.logprob_rows, strict=True):
                target = int(batch.num_given + batch.target_index[index])
                assert self.values[int(row)] == prefixes[target]
                self.logprobs.add(int(row))

    @rule(planned=consumes(planned))
    def abandon(self, planned: Planned) -> None:
        del planned

    def prefixes(self, batch: Batch) -> dict[int, Prefix]:
        """The tokens up to each packed token: of given ones, those that their row stands for by now."""
        found = {index: self.values[int(row)] for index, row in enumerate(batch.given_rows)}
        for path, line in zip(batch.paths, batch.pad_index, strict=True):
            for end in range(len(path)):
                prefix = tuple(path[: end + 1].tolist())
                assert found.setdefault(int(line[end]), prefix) == prefix
        return found

    def check_targets(self, planned: Planned, prefixes: dict[int, Prefix]) -> None:
        """Every log-prob is there, from a hidden state that is there."""
        batch = planned.batch
        assert self.hidden.issuperset(batch.given_rows[batch.given_scored].tolist())
        scored = [*batch.given_scored, *(batch.num_given + batch.score_index)]
        results = [prefixes[index] for index in range(batch.num_given)]
        results += [
            (*prefixes[int(scored[row])], int(token))
            for row, token in zip(batch.target_rows, batch.target_ids, strict=True)
        ]
        for sequence, start, indices in zip(planned.sequences, planned.starts, batch.target_of, strict=True):
            ends = range(start + 2, len(sequence) + 1)
            assert [results[index] for index in indices] == [tuple(sequence[:end].tolist()) for end in ends]
            given = indices[indices < batch.num_given]
            assert self.logprobs.issuperset(batch.given_rows[given].tolist())

    @invariant()
    def rows_are_in_one_place_and_within_the_budget(self) -> None:
        rows = [row for node in self.kept._trie.nodes() for row in node.rows.tolist()]
        free = self.kept._free
        assert sorted([*rows, *free]) == list(range(len(PREFIX) + CAPACITY))
        assert self.kept.counts.kept == CAPACITY - len(free)

    @invariant()
    def nodes_are_the_tokens_of_their_rows(self) -> None:
        for node in self.kept._trie.nodes():
            tokens = list(whole(node))
            assert len(node.tokens) == len(node.rows) > 0
            for row in node.rows[::-1].tolist():
                assert self.values[row] == tuple(tokens)
                tokens.pop()

    @invariant()
    def nodes_are_used_no_later_than_the_node_before(self) -> None:
        for node in self.kept._trie.nodes():
            assert node.parent is not None
            assert node.parent.parent is None or node.parent.used >= node.used


def whole(node: Node) -> Prefix:
    """The tokens from the root up to the end of a node."""
    before = whole(node.parent) if node.parent is not None else ()
    return (*before, *node.tokens.tolist())


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def keep(kept: KeptPrefixes, *texts: list[int]) -> None:
    """Run a batch of sequences of which all log-probs are wanted."""
    batch = pack([np.array(each) for each in texts], [0] * len(texts), given=kept)
    with keeping(kept, [batch]):
        pass


def matched(kept: KeptPrefixes, tokens: list[int]) -> int:
    return len(kept.match(np.array([*tokens, 9]), 0).rows)


NONE = np.empty(0, np.int64)


def test_least_recently_used_text_goes_first_from_its_end() -> None:
    kept = KeptPrefixes(9, NONE)
    for first in (1, 2, 3):
        keep(kept, [first, 5, 6])
    assert matched(kept, [1, 5, 6]) == 3
    keep(kept, [4, 5])
    assert [matched(kept, [first, 5, 6]) for first in (2, 1, 3, 4)] == [1, 3, 3, 2]


def test_prefix_of_the_pair_is_never_evicted() -> None:
    kept = KeptPrefixes(3, np.array([7, 8]))
    for first in range(5):
        keep(kept, [7, 8, first, 1, 2, 3])
    assert matched(kept, [7, 8]) == 2
    assert kept.counts.kept == 3


def test_matched_rows_are_not_evicted_while_a_batch_waits() -> None:
    kept = KeptPrefixes(4, NONE)
    keep(kept, [1, 2, 3, 4])
    waiting = pack([np.array([1, 2, 3, 4, 5])], [0], given=kept)
    keep(kept, [6, 7, 8])
    assert kept.match(np.array([6, 7, 8]), 0).rows.tolist() == []
    del waiting
    keep(kept, [6, 7, 8])
    assert matched(kept, [6, 7, 8]) == 3


def test_a_sequence_is_continued_behind_its_last_token() -> None:
    kept = KeptPrefixes(10, NONE)
    keep(kept, [1, 2, 3])
    batch = pack([np.array([1, 2, 3, 4, 5])], [0], given=kept)
    assert batch.input_ids.tolist() == [4, 5]
    assert kept.counts.given == 0
    with keeping(kept, [batch]):
        pass
    assert kept.counts == KeptCounts(capacity=10, kept=5, given=3, computed=5, bytes_per_token=0)


def test_rows_without_what_is_asked_of_them_are_computed_once_more() -> None:
    kept = KeptPrefixes(10, NONE)
    late = pack([np.array([1, 2, 3, 4, 5])], [3], given=kept)
    with keeping(kept, [late]):
        pass
    early = pack([np.array([1, 2, 3, 4, 5, 6])], [0], given=kept)
    assert early.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    with keeping(kept, [early]):
        pass
    assert kept.counts.kept == 6
    assert matched(kept, [1, 2, 3, 4, 5, 6]) == 6


def test_rows_added_behind_rows_that_are_missing_are_refused() -> None:
    trie = KeptTrie()
    with pytest.raises(ValueError, match="behind rows that are not there"):
        trie.add(np.array([1, 2]), np.array([0]))

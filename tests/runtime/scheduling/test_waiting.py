"""The waiting requests: what a window takes, whatever came and went before."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stepscore.scheduling.waiting import Waiting


@dataclass(frozen=True)
class Asked:
    arrival: int
    group: str
    tokens: int


class Comings(RuleBasedStateMachine):
    """Requests come, go and are taken; a list is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Waiting[Asked] = Waiting()
        self.model: list[Asked] = []
        self.arrivals = 0

    @rule(group=st.sampled_from("abcd"), tokens=st.integers(1, 9))
    def add(self, group: str, tokens: int) -> None:
        asked = Asked(self.arrivals, group, tokens)
        self.arrivals += 1
        self.waiting.add(asked, group, tokens=tokens)
        self.model.append(asked)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.model))
        assert self.waiting.remove(asked)
        assert not self.waiting.remove(asked)
        self.model.remove(asked)

    @rule(budget=st.integers(1, 30))
    def take(self, budget: int) -> None:
        taken = self.waiting.take(budget)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(self.model)
        assert sum(asked.tokens for asked in taken) <= budget or len(taken) == 1
        if self.model:
            assert taken[0] == self.model[0]  # the oldest request of all is never passed over
        left = [asked for asked in self.model if asked not in taken]
        room = budget - sum(asked.tokens for asked in taken)
        assert all(asked.tokens > room for asked in left)  # nothing that fits is left behind
        self.model = left

    @invariant()
    def the_same_wait(self) -> None:
        assert set(self.waiting) == set(self.model)
        assert len(self.waiting) == len(self.model)
        assert self.waiting.tokens == sum(asked.tokens for asked in self.model)


TestComings = Comings.TestCase


@given(st.permutations("aabbcc"))
def test_groups_that_fit_are_taken_whole_the_oldest_first(groups: list[str]) -> None:
    waiting: Waiting[Asked] = Waiting()
    for arrival, group in enumerate(groups):
        waiting.add(Asked(arrival, group, 5), group, tokens=5)
    first, second = list(dict.fromkeys(groups))[:2]
    assert [asked.group for asked in waiting.take(24)] == [first, first, second, second]

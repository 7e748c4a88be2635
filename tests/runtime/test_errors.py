"""Errors cross processes: each survives pickling and copying with what it says."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from stepscore.errors import Overloaded, StepscoreError


def subclasses(kind: type[StepscoreError] = StepscoreError) -> Iterator[type[StepscoreError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


@pytest.mark.parametrize("kind", subclasses())
def test_an_error_survives_pickling_and_copying(kind: type[StepscoreError]) -> None:
    error = kind("found this", hint="do that")
    error.add_note("seen there")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (str(again), again.message, again.hint) == ("found this", "found this", "do that")
        assert again.__notes__ == ["seen there"]


def test_a_refusal_keeps_the_seconds_to_wait() -> None:
    again = pickle.loads(pickle.dumps(Overloaded("much waits", retry_after=7.5)))
    assert (again.retry_after, again.hint) == (7.5, None)

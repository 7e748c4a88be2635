"""An iterator in another thread: the same items, never too many, and it lets go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.batching.prefetch import prefetch

PATIENCE = 20.0
"""Seconds after which something that must happen has not; nothing waits that long when all is well."""


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stepscore-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not threads())


class Counting:
    """Counts from 1 and knows how far it was pulled, and by whom."""

    def __init__(self) -> None:
        self.pulled = 0
        self.by: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        while True:
            self.by.add(threading.get_ident())
            self.pulled += 1
            yield self.pulled


@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_items_come_in_order(items: list[int], depth: int) -> None:
    assert list(prefetch(iter(items), depth)) == items


def test_nothing_is_pulled_before_the_first_next() -> None:
    items = Counting()
    generator = prefetch(items)
    assert not threads()
    assert items.pulled == 0
    assert next(generator) == 1
    generator.close()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_items_are_pulled_ahead_and_no_more(depth: int) -> None:
    items = Counting()
    generator = prefetch(items, depth)
    for taken in range(1, 8):
        assert next(generator) == taken
        wait_for(lambda: items.pulled == taken + depth)  # noqa: B023  called at once
        time.sleep(0.002)
        assert items.pulled == taken + depth
    generator.close()


def test_the_items_are_pulled_in_one_other_thread() -> None:
    items = Counting()
    generator = prefetch(items)
    assert [next(generator) for _ in range(5)] == [1, 2, 3, 4, 5]
    generator.close()
    assert len(items.by) == 1
    assert threading.get_ident() not in items.by


class Broken(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Broken])
def test_an_exception_comes_at_its_place(error: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise error("why")

    generator = prefetch(items(), depth=9)
    assert [next(generator) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(error, match="why"):
        next(generator)


def test_prefetch_rejects_non_iterables() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(7))  # type: ignore[arg-type]


def test_exhausted_prefetch_stays_exhausted() -> None:
    generator = prefetch([1])
    assert list(generator) == [1]
    assert list(generator) == []


def test_closing_stops_the_thread() -> None:
    items = Counting()
    generator = prefetch(items, depth=3)
    next(generator)
    generator.close()
    wait_for(lambda: not threads())
    assert items.pulled <= 4


def test_closing_before_the_first_next_starts_nothing() -> None:
    items = Counting()
    prefetch(items).close()
    assert items.pulled == 0


def test_an_exception_of_the_reader_stops_the_thread() -> None:
    def read() -> None:
        for item in prefetch(Counting()):
            if item == 3:
                raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        read()


def test_closing_does_not_wait_for_an_item_that_does_not_come() -> None:
    arrives = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert arrives.wait(PATIENCE)
        yield 2
        raise AssertionError("pulled once more")

    generator = prefetch(items())
    assert next(generator) == 1
    generator.close()  # the thread is inside `wait`
    assert threads()
    arrives.set()


def test_exception_after_closing_is_dropped() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        closed.wait(PATIENCE)
        raise ValueError("too late")

    generator = prefetch(items())
    next(generator)
    generator.close()
    closed.set()  # pytest turns an exception that ends a thread into a failure


def test_yielded_items_are_released() -> None:
    """Depth 1: the one taken last, which the reader holds, and the one ahead."""
    alive = 0

    class Item:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    seen = []
    for _ in prefetch(Item() for _ in range(20)):
        seen.append(alive)
    del _
    assert max(seen) <= 3


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_under_1_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(prefetch([1], depth))

"""Items on two cores: the same results in the same order, few at a time, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from stepscore_export.threads import WORKERS, in_order

PATIENCE = 20.0
"""Seconds after which something that must happen has not; nothing waits that long when all is well."""


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stepscore-export")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not threads()


@given(st.lists(st.integers()))
def test_in_order_gives_the_results_of_map(items: list[int]) -> None:
    assert list(in_order(str, iter(items))) == list(map(str, items))


def test_slow_item_still_comes_first() -> None:
    second_is_done = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(PATIENCE)
        else:
            second_is_done.set()
        return item

    assert list(in_order(slow_first, range(2))) == [0, 1]


def test_all_workers_compute_at_once() -> None:
    """Nobody passes the barrier alone."""
    together = threading.Barrier(WORKERS)

    def meet(item: int) -> int:
        together.wait(PATIENCE)
        return item

    assert list(in_order(meet, range(3 * WORKERS))) == list(range(3 * WORKERS))


def test_items_are_computed_in_worker_threads() -> None:
    assert threading.get_ident() not in set(in_order(lambda _: threading.get_ident(), range(9)))


def test_no_more_items_are_held_than_workers() -> None:
    """Items that were read and whose results are not handed out yet."""
    read = handed_out = 0
    held: list[int] = []

    def items() -> Iterator[int]:
        nonlocal read
        for item in range(10):
            read += 1
            held.append(read - handed_out)
            yield item

    for _ in in_order(abs, items()):
        held.append(read - handed_out)
        handed_out += 1
    assert (read, handed_out) == (10, 10)
    assert max(held) == WORKERS


def test_nothing_is_read_before_the_first_result_is_asked_for() -> None:
    def items() -> Iterator[int]:
        raise AssertionError("read")
        yield

    in_order(abs, items()).close()  # type: ignore[attr-defined]
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_of_the_function_comes_at_its_place(error: type[BaseException]) -> None:
    def fail_at_3(item: int) -> int:
        if item == 3:
            raise error("why")
        return item

    results = in_order(fail_at_3, range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error, match="why"):
        next(results)
    assert not threads()


def test_an_exception_of_the_items_arrives() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        list(in_order(abs, items()))
    assert not threads()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_leaves_no_thread(taken: int) -> None:
    results = in_order(abs, iter(range(100)))
    assert [next(results) for _ in range(taken)] == list(range(taken))
    results.close()  # type: ignore[attr-defined]
    assert not threads()


def test_an_exception_of_the_reader_leaves_no_thread() -> None:
    def read() -> None:
        for item in in_order(abs, iter(range(100))):
            if item == 3:
                raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        read()


# BLAS


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_runs_in_one_thread_while_any_items_are_computed() -> None:
    """Also where one iteration ends before another that began later, or is given up."""
    before = blas_threads()
    first, second = (in_order(lambda _item: blas_threads(), range(3)) for _ in range(2))
    assert next(first) == next(second) == {1}
    first.close()  # type: ignore[attr-defined]
    assert next(second) == blas_threads() == {1}
    assert list(second) == [{1}]
    assert blas_threads() == before


def test_blas_has_its_threads_again_after_an_error() -> None:
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 / item, [0]))
    assert blas_threads() == before

"""The one rule by which windows are filled, for a scorer and for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stepscore.batching.windows import fill_windows

SIZES = st.lists(st.integers(0, 12), max_size=20)


@given(SIZES, st.integers(1, 30))
def test_windows_are_consecutive_and_within_their_tokens(sizes: list[int], limit: int) -> None:
    windows = list(fill_windows(sizes, limit, int))
    assert [size for window in windows for size in window] == sizes
    assert all(sum(window) <= limit or len([size for size in window if size]) == 1 for window in windows)


@given(SIZES, st.integers(1, 30))
def test_a_window_ends_only_where_the_next_item_does_not_fit(sizes: list[int], limit: int) -> None:
    windows = list(fill_windows(sizes, limit, int))
    for window, following in pairwise(windows):
        assert sum(window) == 0 or sum(window) + following[0] > limit


@given(SIZES, st.integers(1, 30))
def test_items_without_tokens_change_no_window(sizes: list[int], limit: int) -> None:
    windows = [[size for size in window if size] for window in fill_windows(sizes, limit, int)]
    assert [window for window in windows if window] == list(fill_windows(filter(None, sizes), limit, int))


def test_an_item_without_tokens_comes_at_once_if_nothing_waits() -> None:
    read = []

    def items() -> Iterator[int]:
        for size in (0, 0, 5, 0, 5):
            read.append(size)
            yield size

    windows = fill_windows(items(), 7, int)
    assert (next(windows), read) == ([0], [0])
    assert (next(windows), read) == ([0], [0, 0])
    assert next(windows) == [5, 0]

"""The one rule by which windows are filled, for a scorer and for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.batching.windows import CHARS_OF_ERROR, HELD_CHARS, fill_windows

SIZES = st.lists(st.integers(0, 12), max_size=20)


@given(SIZES, st.integers(1, 30))
def test_windows_are_consecutive_and_within_their_tokens(sizes: list[int], limit: int) -> None:
    windows = list(fill_windows(sizes, limit, int))
    assert [size for window in windows for size in window] == sizes
    assert all(sum(window) <= limit or len([size for size in window if size]) == 1 for window in windows)


@given(SIZES, st.integers(1, 30))
def test_a_window_ends_only_where_no_item_or_not_the_next_one_fits(sizes: list[int], limit: int) -> None:
    windows = list(fill_windows(sizes, limit, int))
    for window, following in pairwise(windows):
        assert sum(window) == 0 or sum(window) >= limit or sum(window) + following[0] > limit


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


def test_a_window_is_emitted_once_it_is_full() -> None:
    read = []

    def items() -> Iterator[int]:
        for size in (3, 4, 1):
            read.append(size)
            yield size

    assert next(fill_windows(items(), 7, int)) == [3, 4]
    assert read == [3, 4]


@pytest.mark.parametrize(("num_chars", "most"), [(0, 4096), (CHARS_OF_ERROR, 2048), (HELD_CHARS, 1)])
def test_errors_that_wait_behind_a_record_are_bounded_by_their_characters(num_chars: int, most: int) -> None:
    windows = fill_windows([5, *[0] * 10_000], 7, int, lambda size: 0 if size else num_chars)
    assert [len(window) for window in windows] == [1 + most] + [1] * (10_000 - most)

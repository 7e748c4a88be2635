"""Prefetch: run an iterator in another thread, a few items ahead of its reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None = None


def prefetch(
    items: Iterable[T], depth: int = 1, waits: Callable[[bool], None] = lambda _: None
) -> Generator[T, None, None]:
    """Yield the items in order while a daemon thread pulls the next ones, at most `depth` of them.

    Nothing is pulled before the first `next`. An exception of the iterator is raised at the position of its
    item. Closing the generator, or leaving the loop over it by an exception, does not wait for the thread: it
    finishes its current item, drops it and ends. `waits` is told True when the reader begins to wait for an
    item that is not there, and False when it has it. Raises ValueError for a depth under 1.

    >>> list(prefetch(iter("abc"), depth=2))
    ['a', 'b', 'c']
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    handed: SimpleQueue[_Item[T] | _End] = SimpleQueue()  # unbounded: `room` limits it
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def pull() -> None:
        try:
            iterator = iter(items)
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                handed.put(_Item(next(iterator)))
        except StopIteration:
            handed.put(_End())
        except BaseException as error:  # any exception is raised in the reader's thread
            handed.put(_End(error))

    threading.Thread(target=pull, name="stepscore-prefetch", daemon=True).start()
    try:
        while isinstance(got := _next(handed, waits), _Item):
            room.release()
            yield got.value
        if got.error is not None:
            raise got.error
    finally:
        stopped.set()
        room.release()


def _next(handed: SimpleQueue[T], waits: Callable[[bool], None]) -> T:
    try:
        return handed.get_nowait()
    except Empty:
        waits(True)
    got = handed.get()
    waits(False)
    return got

"""An iterator that runs in another thread, a few items ahead of who reads it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None = None


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T, None, None]:
    """Yield the items in order while a daemon thread pulls the next ones, at most `depth` of them.

    Nothing is pulled before the first `next`. What pulling raises is raised where the item would have been.
    Closing the generator, or leaving the loop over it by an exception, lets the thread finish the item it is
    at, which is dropped, and pull no more; nobody waits for that. Raises ValueError for a depth under 1.

    >>> list(prefetch(iter("abc"), depth=2))
    ['a', 'b', 'c']
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    handed: SimpleQueue[_Item[T] | _End] = SimpleQueue()  # never full: `room` bounds it
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
        except BaseException as error:  # whatever it is, it belongs to the reader
            handed.put(_End(error))

    threading.Thread(target=pull, name="stepscore-prefetch", daemon=True).start()
    try:
        while isinstance(got := handed.get(), _Item):
            room.release()
            yield got.value
        if got.error is not None:
            raise got.error
    finally:
        stopped.set()
        room.release()

"""Row blocks on two cores: numpy gives up the interpreter's lock while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

WORKERS = 2


def in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Give function(item) of each item, in order; WORKERS are computed at a time, and no more are held.

    >>> list(in_order(abs, iter([-3, 2, -1])))
    [3, 2, 1]
    """
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="stepscore-export") as pool:
        running: deque[Future[U]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) == WORKERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

"""Compute in two threads: numpy releases the GIL while it computes.

BLAS runs in one thread meanwhile. Where it has threads of its own, products of two threads wait for each
other and for those that spin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
U = TypeVar("U")

WORKERS = 2


def in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield function(item) for each item, in order; at most WORKERS results are computed and held at a time.

    >>> list(in_order(abs, iter([-3, 2, -1])))
    [3, 2, 1]
    """
    with _ONE_BLAS_THREAD.held(), ThreadPoolExecutor(WORKERS, thread_name_prefix="stepscore-export") as pool:
        running: deque[Future[U]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) == WORKERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


class _OneBlasThread:
    """The limit of the process's BLAS, from the first that holds it to the last that lets go."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._limit: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._limit = _controller().limit(limits=1, user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._limit.restore_original_limits()


_ONE_BLAS_THREAD = _OneBlasThread()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()

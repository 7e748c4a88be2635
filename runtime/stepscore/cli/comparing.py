"""Show how far the comparison of answers is, on standard error, when it takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TextIO

from stepscore.selection.answers import Comparer

LOG_SECONDS = 10.0
TERMINAL_SECONDS = 1.0


@contextmanager
def shown(comparer: Comparer, done: Sized, total: int, stream: TextIO) -> Iterator[None]:
    """Print a line every ten seconds while the body runs; on a terminal, rewrite one line every second."""
    terminal = stream.isatty()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(TERMINAL_SECONDS if terminal else LOG_SECONDS):
            line = progress_line(comparer, len(done), total)
            stream.write(f"\r{line}\x1b[K" if terminal else f"stepscore: {line}\n")
            stream.flush()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        if terminal:
            stream.write("\r\x1b[K")
            stream.flush()


def progress_line(comparer: Comparer, done: int, total: int) -> str:
    """Return one line: problems done, and questions to math-verify.

    >>> from stepscore.enums import Equality
    >>> progress_line(Comparer(Equality.EXACT), 3, 1200)
    '3 of 1,200 problems: 0 questions to math-verify, 0 pairs given up'
    """
    return (
        f"{done:,} of {total:,} problems: {comparer.asked:,} questions to math-verify, "
        f"{comparer.undecided:,} pairs given up"
    )

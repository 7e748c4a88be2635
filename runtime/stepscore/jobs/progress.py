"""Show a job's progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from stepscore.jobs.job import Tally

LOG_SECONDS = 10.0
BAR_SECONDS = 0.5


@contextmanager
def shown(
    tally: Tally, total: int | None, stream: TextIO, *, log_seconds: float = LOG_SECONDS
) -> Iterator[None]:
    """Show the tally while the body runs and updates it.

    A thread polls the tally, so that a long batch does not look like a hang.
    """
    started = time.monotonic()
    bar: tqdm[None] | None = None
    if stream.isatty():
        bar = tqdm(total=total, unit="record", file=stream, dynamic_ncols=True)

    def show() -> None:
        seconds = time.monotonic() - started
        if bar is None:
            stream.write(f"stepscore: {progress_line(tally, total, seconds)}\n")
            stream.flush()
        else:
            bar.initial = tally.resumed
            bar.n = tally.records
            bar.set_postfix_str(f"{_rate(tally, seconds)}, {tally.errors.total()} errors", refresh=False)
            bar.refresh()

    done = threading.Event()

    def watch() -> None:
        while not done.wait(log_seconds if bar is None else BAR_SECONDS):
            show()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if bar is not None:
            show()
            bar.close()


def progress_line(tally: Tally, total: int | None, seconds: float) -> str:
    """Return one log line.

    >>> progress_line(Tally(records=1200, tokens=50_000), 3000, 10.0)
    '1,200 of 3,000 records, 0 errors, 5,000 tokens/s'
    """
    of = "" if total is None else f" of {total:,}"
    return f"{tally.records:,}{of} records, {tally.errors.total()} errors, {_rate(tally, seconds)}"


def summary(tally: Tally, seconds: float) -> str:
    """Return the summary of a finished job.

    >>> from collections import Counter
    >>> summary(Tally(records=5, tokens=900, errors=Counter(too_long=1, no_steps=1)), 2.0)
    '5 records in 2.0 s: 3 scored (450 tokens/s), 2 with errors (no_steps 1, too_long 1)'
    """
    errors = tally.errors.total()
    parts = [f"{tally.records - errors:,} scored ({_rate(tally, seconds)})"]
    if tally.resumed:
        parts.append(f"{tally.resumed:,} of the records by an earlier run")
    if errors:
        kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(tally.errors.items()))
        parts.append(f"{errors:,} with errors ({kinds})")
    return f"{tally.records:,} records in {seconds:,.1f} s: " + ", ".join(parts)


def _rate(tally: Tally, seconds: float) -> str:
    return f"{tally.tokens / seconds if seconds > 0 else 0:,.0f} tokens/s"

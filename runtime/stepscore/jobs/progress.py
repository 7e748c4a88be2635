"""Show a job's progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO, cast

from tqdm import tqdm

from stepscore.jobs.job import Tally

LOG_SECONDS = 10.0
BAR_SECONDS = 0.5


class Progress:
    """The bar of a running job, None where lines are printed instead."""

    def __init__(self, bar: tqdm[None] | None) -> None:
        self._bar = bar

    def beside(self, out: BinaryIO) -> BinaryIO:
        """Return an output that takes the bar away before it writes: both may be on one terminal."""
        return out if self._bar is None else cast(BinaryIO, _Beside(out, self._bar))


class _Beside(io.RawIOBase):
    def __init__(self, out: BinaryIO, bar: tqdm[None]) -> None:
        super().__init__()
        self._out, self._bar = out, bar

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._out.fileno()

    def write(self, data: object) -> int:
        with self._bar.get_lock():  # the bar is redrawn below the line, by the thread that watches
            self._bar.clear(nolock=True)
            self._bar.fp.flush()
            return self._out.write(cast(bytes, data))


@contextmanager
def shown(
    tally: Tally,
    total: int | None,
    stream: TextIO,
    *,
    doing: str | None = None,
    in_lines: bool = False,
    log_seconds: float = LOG_SECONDS,
) -> Iterator[Progress]:
    """Show the tally while the body runs and updates it; `doing` names the work where it is no scoring.

    A thread polls the tally, so that a long batch does not look like a hang. `in_lines` asks for lines on a
    terminal too: what else is printed there may come from another process.
    """
    started = time.monotonic()
    bar: tqdm[None] | None = None
    if stream.isatty() and not in_lines:
        bar = tqdm(
            total=total,
            unit="record",
            file=stream,
            dynamic_ncols=True,
            initial=tally.resumed,
            desc=doing,
            leave=doing is None,
        )

    def show() -> None:
        seconds = time.monotonic() - started
        if bar is None:
            name = "" if doing is None else f"{doing}: "
            stream.write(f"stepscore: {name}{progress_line(tally, total, seconds)}\n")
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
        yield Progress(bar)
    finally:
        done.set()
        watcher.join()
        if bar is not None:
            show()
            bar.close()


def progress_line(tally: Tally, total: int | None, seconds: float) -> str:
    """Return one log line.

    >>> progress_line(Tally(records=1200, tokens=50_000), 3000, 10.0)
    '1,200 of 3,000 records, 0 errors, 5,000 tokens/s, 15 s left'
    """
    of = "" if total is None else f" of {total:,}"
    line = f"{tally.records:,}{of} records, {tally.errors.total()} errors, {_rate(tally, seconds)}"
    left = remaining(tally, total, seconds)
    return line if left is None else f"{line}, {duration(left)} left"


def remaining(tally: Tally, total: int | None, seconds: float) -> float | None:
    """Return the seconds left at the pace of this run's records, None where it is not known.

    >>> remaining(Tally(records=60, resumed=50), 100, 5.0)
    20.0
    """
    done = tally.records - tally.resumed
    if total is None or done <= 0 or tally.records >= total:
        return None
    return (total - tally.records) * seconds / done


def duration(seconds: float) -> str:
    """Return a time in words, no more precise than an estimate is.

    >>> [duration(each) for each in (0.24, 41.7, 95, 4000, 200_000)]
    ['1 s', '42 s', '1 min 35 s', '1 h 7 min', '2 d 8 h']
    """
    whole = max(1, round(seconds))
    for size, unit, smaller, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            parts = divmod(round(whole / smaller), size // smaller)
            return f"{parts[0]} {unit} {parts[1]} {part}"
    return f"{whole} s"


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

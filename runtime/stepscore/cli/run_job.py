"""Run a scoring job from the command line: its input and output, its progress, how it ended."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stepscore.cli.group import Interrupted, say
from stepscore.cli.streams import is_standard_output, standard_output
from stepscore.errors import StepscoreError

if TYPE_CHECKING:
    from stepscore.cli.results import ScoreResult
    from stepscore.jobs.job import JobOptions, Tally
    from stepscore.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that ended: what was scored, and the seconds after loading."""

    tally: Tally
    seconds: float

    @property
    def exit_code(self) -> int:
        """Return 1 where records have errors, else 0."""
        return 1 if self.tally.errors else 0

    def result(self, source: str, output: str) -> ScoreResult:
        """Return what `score --json` prints."""
        from stepscore.cli.results import ScoreResult
        from stepscore.jobs.provenance import Provenance

        tally = self.tally
        return ScoreResult(
            stepscore=tally.provenance or Provenance(),
            input=source,
            output="-" if is_standard_output(output) else output,
            records=tally.records,
            scored=tally.records - tally.errors.total(),
            resumed=tally.resumed,
            errors=dict(sorted(tally.errors.items())),
            tokens=tally.tokens,
            seconds=self.seconds,
        )


def load_scorer(pair: Path, load: dict[str, Any]) -> Scorer:
    """Open a pair with the values of `load_options`."""
    from stepscore.scorer import Scorer

    return Scorer.load(pair, **load)


def run_job(
    scorer: Scorer, lines: BinaryIO, output: str, options: JobOptions, *, quiet: bool, summary: bool
) -> Finished:
    """Run a job; show its progress unless `quiet`, and with `summary` a closing line. Raises Interrupted."""
    from stepscore.jobs.job import Tally, run_to_file, run_to_stream
    from stepscore.jobs.parquet.job import is_parquet, run_to_parquet
    from stepscore.jobs.progress import Progress, shown

    tally = Tally()
    started = time.monotonic()
    resumable = _is_resumable(output)
    in_lines = not resumable and not _is_shown_or_kept(output)
    total = None if quiet else total_of(lines, options)
    try:
        with (
            contextlib.nullcontext(Progress(None))
            if quiet
            else shown(tally, total, sys.stderr, in_lines=in_lines)
        ) as progress:
            if resumable:
                run = run_to_parquet if is_parquet(output) else run_to_file
                run(scorer, lines, Path(output), tally, options)
            else:
                with _unbuffered(output) as out:
                    run_to_stream(scorer, lines, progress.beside(out), tally, options)
    except KeyboardInterrupt:
        without = " without --overwrite" if options.overwrite else ""
        again = f"; run the same command again{without} to resume" if resumable else ""
        raise Interrupted(f"interrupted after {tally.records} records{again}") from None
    done = Finished(tally, time.monotonic() - started)
    if summary:
        say(_closing_line(done, output))
    return done


def _unbuffered(output: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a pipe or a device unbuffered: closing a buffer would flush, and fail a second time."""
    return standard_output() if is_standard_output(output) else open(output, "wb", buffering=0)


def _is_resumable(output: str) -> bool:
    """Return whether the output is a file, not a pipe or a device."""
    path = Path(output)
    return not is_standard_output(output) and (path.is_file() or path.is_dir() or not path.exists())


def _is_shown_or_kept(output: str) -> bool:
    """Return whether data goes to a terminal, where a bar makes room for it, or to a regular file.

    What reads a pipe may print on the terminal of the bar at any time.
    """
    if not is_standard_output(output):
        return False
    try:
        return sys.stdout.isatty() or stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except OSError:  # a stream in memory
        return False


def total_of(lines: BinaryIO, options: JobOptions) -> int | None:
    """Return the number of records that a job answers: of a plain file or a table; of a pipe the limit.

    That of a shard of anything but a plain file is not known before all lines are parsed.
    """
    from stepscore.jobs.inputs.opening import is_file
    from stepscore.jobs.jsonl import not_empty, read_lines

    limit, shard = options.limit, options.shard
    known: int | None = getattr(lines, "num_rows", None)  # of a table
    if known is not None and shard is None:
        return known if limit is None else min(known, limit)
    if known is not None or not is_file(lines) or not lines.seekable():
        return limit if shard is None else None
    start, count = lines.tell(), 0
    counted = islice(not_empty(read_lines(lines)), limit) if shard is None else options.lines(lines)
    with contextlib.suppress(StepscoreError):  # the run itself names an input that cannot be read
        for _ in counted:
            count += 1
    lines.seek(start)
    return count


def _closing_line(done: Finished, output: str) -> str:
    from stepscore.jobs.progress import summary

    tally = done.tally
    if tally.resumed and tally.resumed == tally.records:
        errors = f", {tally.errors.total()} of them with errors" if tally.errors else ""
        return f"{output} is already complete: {tally.records:,} records{errors}"
    return summary(tally, done.seconds)

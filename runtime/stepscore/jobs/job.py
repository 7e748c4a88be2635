"""JSONL in, JSONL out: one line answers one line, in order, and a run that was killed can go on.

The output is append-only and written a whole line at a time. Beside it stands OUT.fingerprint.json, written
before the first line: what the numbers depend on. The same command run again (see resume.py) continues
after the last whole line. Lines are flushed to the operating system one by one, so a killed process loses
at most a torn line; the disk is synchronised once, at the end.

Memory does not grow with the input: lines are read one by one, and the ids seen so far live in a temporary
SQLite file (about 40 bytes of disk an id, a 2 MB cache, 200,000 ids a second).
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from stepscore.errors import DuplicateId, InputError, NonFinite, OutputUnwritable, StepscoreError
from stepscore.jobs.jsonl import ParsedLine, output_line, parse_line, read_lines
from stepscore.jobs.resume import claim, earlier_answers, refuse_same_file
from stepscore.records import Record

if TYPE_CHECKING:
    from stepscore.records import Result

T = TypeVar("T")


class StreamScorer(Protocol):
    """What a job needs of a Scorer."""

    def fingerprint(self) -> dict[str, str]:
        """Return what the numbers depend on."""

    def stream(
        self, items: Iterable[tuple[T, Record | InputError]]
    ) -> Iterator[tuple[T, Result | InputError | NonFinite]]:
        """Yield one outcome an item, in order."""


@dataclass(slots=True)
class Tally:
    """How far a job is; another thread may read it."""

    records: int = 0
    resumed: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def run_to_stream(
    scorer: StreamScorer, source: BinaryIO, out: BinaryIO, tally: Tally, *, limit: int | None = None
) -> None:
    """Score `source` (its first `limit` lines) and write one line each to `out`."""
    refuse_same_file(out, source)
    _score(scorer, parsed_lines(source, limit), out, tally)


def run_to_file(
    scorer: StreamScorer,
    source: BinaryIO,
    path: Path,
    tally: Tally,
    *,
    limit: int | None = None,
    tokens: bool = False,
) -> None:
    """Score `source` into the file at `path`, continuing what an earlier run of the same job left there.

    Raises ResumeMismatch where the file was begun by another job, OutputExists where it is not a job's
    output at all, OutputUnwritable where it cannot be written. None of them touches the file.
    """
    job = {"limit": "none" if limit is None else str(limit), "tokens": "yes" if tokens else "no"}
    with claim(path, source, {**scorer.fingerprint(), **job}) as output:
        lines = parsed_lines(source, limit)
        earlier = earlier_answers(path, lines)
        if earlier.torn:
            output.truncate(earlier.num_bytes)
        tally.records = tally.resumed = earlier.num_lines
        tally.errors.update(earlier.errors)
        _score(scorer, lines, output, tally)
        os.fsync(output.fileno())


def parsed_lines(source: BinaryIO, limit: int | None = None) -> Iterator[ParsedLine]:
    """Parse line by line; the second line that has an id is a DuplicateId.

    Ids that print the same (7 and "7") are the same. A line claims its id if it gives one, or if it is a
    record without one, whose id is its index; a line in which no id could be read claims none.
    """
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as seen:
        seen.execute("PRAGMA journal_mode = OFF")
        seen.execute("BEGIN")
        seen.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        for index, text in enumerate(islice(read_lines(source), limit)):
            line = parse_line(text, index)
            if line.given_id is not None or isinstance(line.record, Record):
                new = seen.execute("INSERT OR IGNORE INTO ids VALUES (?)", (str(line.id),)).rowcount
                if not new:
                    line = replace(line, record=DuplicateId("the id was seen before in this input"))
            yield line


def _score(scorer: StreamScorer, lines: Iterator[ParsedLine], out: BinaryIO, tally: Tally) -> None:
    for line, outcome in scorer.stream((line, line.record) for line in lines):
        _append(out, output_line(line, outcome))
        tally.records += 1
        if isinstance(outcome, StepscoreError):
            tally.errors[outcome.code] += 1
        else:
            tally.tokens += outcome.num_tokens


def _append(out: BinaryIO, data: bytes) -> None:
    try:
        while data:
            data = data[out.write(data) :]
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(
            f"the output cannot be written: {error.strerror}",
            hint="what is written in a file stays valid: run the same command again when there is space",
        ) from error

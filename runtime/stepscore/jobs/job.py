"""Score JSONL into JSONL: one output line per input line, in order; an interrupted run can be resumed.

The output is append-only and written a whole line at a time. OUT.fingerprint.json in the same folder, written
before the first line, records what the numbers depend on. Running the same command again (see resume.py)
continues after the last whole line. Each line is flushed to the operating system, so a killed process loses
at most a torn line; fsync is called once, at the end. Empty lines of the input are skipped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from stepscore.batching.pace import STEADY, Pace
from stepscore.errors import InputError, InputUnreadable, NonFinite, OutputUnwritable, StepscoreError
from stepscore.jobs.earlier_answers import earlier_answers
from stepscore.jobs.jsonl import ParsedLine, output_line
from stepscore.jobs.resume import claim, refuse_same_file, seal
from stepscore.jobs.source import Lines, parsed_lines
from stepscore.records import BY_ACCEPTED_NAMES, AnyRecord, Reading, TokenRecord, TokenResult

if TYPE_CHECKING:
    from stepscore.records import Result

T = TypeVar("T")


class StreamScorer(Protocol):
    """The part of a Scorer that a job uses."""

    def fingerprint(self) -> dict[str, str]:
        """Return what the numbers depend on: pair, beta, convention."""

    def stream(
        self, items: Iterable[tuple[T, AnyRecord | InputError]], pace: Pace = STEADY
    ) -> Iterator[tuple[T, Result | TokenResult | InputError | NonFinite]]:
        """Yield one outcome per item, in order."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Options of a job: at most `limit` records; `overwrite` replaces the output of an earlier job."""

    limit: int | None = None
    tokens: bool = False
    reading: Reading = BY_ACCEPTED_NAMES
    overwrite: bool = False


DEFAULT_OPTIONS = JobOptions()


@dataclass(slots=True)
class Tally:
    """Progress of a job; another thread may read it."""

    records: int = 0
    resumed: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def run_to_stream(
    scorer: StreamScorer, source: BinaryIO, out: BinaryIO, tally: Tally, options: JobOptions = DEFAULT_OPTIONS
) -> None:
    """Score `source` and write one line per record to `out`; raise SourceError before the first."""
    refuse_same_file(out, source)
    _score(scorer, parsed_lines(source, options.limit, options.reading), out, tally, tokens=options.tokens)


def run_to_file(
    scorer: StreamScorer, source: BinaryIO, path: Path, tally: Tally, options: JobOptions = DEFAULT_OPTIONS
) -> None:
    """Score `source` into the file at `path`, resuming an earlier run of the same job.

    Raises SourceError for the input, ResumeMismatch where another job began the file, OutputExists where no
    job wrote it, OutputUnwritable where it cannot be written. None of them changes the file. A limit is no
    part of a job: a run with a larger one continues.
    """
    lines = parsed_lines(source, options.limit, options.reading)
    job = {"tokens": "yes" if options.tokens else "no"} | options.reading.options()
    fingerprint = scorer.fingerprint() | job
    with claim(path, source, fingerprint, overwrite=options.overwrite) as output:
        earlier = earlier_answers(path, lines, scorer.stream)
        if earlier.torn:
            output.truncate(earlier.num_bytes)
        tally.records = tally.resumed = earlier.num_lines
        tally.errors.update(earlier.errors)
        try:
            _score(scorer, lines, output, tally, earlier.digest.update, tokens=options.tokens)
        finally:
            if tally.records > earlier.num_lines:
                seal(path, fingerprint, tally.records, earlier.digest.hexdigest())
        os.fsync(output.fileno())


def _score(
    scorer: StreamScorer,
    lines: Lines,
    out: BinaryIO,
    tally: Tally,
    written: Callable[[bytes], None] = lambda _: None,
    *,
    tokens: bool,
) -> None:
    """Score lines and append the answers; `written` is called with each that is out.

    Raises InputUnreadable, where the input is damaged, behind the answers to all lines before that.
    """
    damage: list[InputUnreadable] = []

    def readable() -> Iterator[tuple[ParsedLine, AnyRecord | InputError]]:
        try:
            for line in lines:
                yield line, line.record
        except InputUnreadable as error:
            damage.append(error)

    for line, outcome in scorer.stream(readable(), lines.pace):
        answer = output_line(line, outcome, tokens=tokens)
        _append(out, answer)
        written(answer)
        tally.records += 1
        if isinstance(outcome, StepscoreError):
            tally.errors[outcome.code] += 1
        elif isinstance(line.record, TokenRecord):
            tally.tokens += line.record.num_tokens
        elif not isinstance(outcome, TokenResult):
            tally.tokens += outcome.num_tokens
    if damage:
        raise damage[0]


def _append(out: BinaryIO, data: bytes) -> None:
    try:
        while data:
            data = data[out.write(data) :]
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write the output: {error.strerror}",
            hint="lines already written stay valid: free space and run the same command again to resume",
        ) from error

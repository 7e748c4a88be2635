"""Score JSONL into JSONL: one output line per input line, in order; an interrupted run can be resumed.

The output is append-only and written a whole line at a time. Its first line, a header (provenance.py),
records what the numbers depend on. Running the same command again (see resume.py) continues after the last
whole line, wherever the output was moved. Each line is flushed to the operating system, so a killed process
loses at most a torn line; fsync is called once, at the end. Empty lines of the input and headers
are skipped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from stepscore.batching.pace import STEADY, Pace
from stepscore.errors import InputError, InputUnreadable, NonFinite, StepscoreError
from stepscore.jobs.earlier_answers import earlier_answers
from stepscore.jobs.jsonl import ParsedLine, output_line
from stepscore.jobs.provenance import HeaderLine, Provenance, ScoringOptions, read_header
from stepscore.jobs.resume import append, claim, refuse_same_file
from stepscore.jobs.shards import Shard
from stepscore.jobs.source import Lines, parsed_lines
from stepscore.records import BY_ACCEPTED_NAMES, AnyRecord, Reading, TokenRecord
from stepscore.results import TokenResult

if TYPE_CHECKING:
    from stepscore.results import Result

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
    """Options of a job: at most `limit` lines; of them a `shard`; `overwrite` replaces an earlier output."""

    limit: int | None = None
    tokens: bool = False
    reading: Reading = BY_ACCEPTED_NAMES
    overwrite: bool = False
    shard: Shard | None = None

    def lines(self, source: BinaryIO) -> Lines:
        """Parse the lines of an input that the job answers."""
        return parsed_lines(source, self.limit, self.reading, self.shard)

    def provenance(self, scorer: StreamScorer) -> Provenance:
        """Return the provenance of a job that begins now."""
        options = ScoringOptions.of(tokens=self.tokens, reading=self.reading, shard=self.shard)
        return Provenance.of_run(scorer.fingerprint(), options)


DEFAULT_OPTIONS = JobOptions()


@dataclass(slots=True)
class Tally:
    """Progress of a job; another thread may read it."""

    records: int = 0
    resumed: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    provenance: Provenance | None = None
    """What the header of the output says, once it is known."""


def run_to_stream(
    scorer: StreamScorer, source: BinaryIO, out: BinaryIO, tally: Tally, options: JobOptions = DEFAULT_OPTIONS
) -> None:
    """Score `source`; write a header and one line per record to `out`; raise SourceError before the first."""
    refuse_same_file(out, source)
    lines = options.lines(source)
    tally.provenance = options.provenance(scorer)
    append(out, HeaderLine(tally.provenance).encode())
    _score(scorer, lines, out, tally, tokens=options.tokens)


def run_to_file(
    scorer: StreamScorer, source: BinaryIO, path: Path, tally: Tally, options: JobOptions = DEFAULT_OPTIONS
) -> None:
    """Score `source` into the file at `path`, resuming an earlier run of the same job.

    Raises SourceError for the input, ResumeMismatch where another job began the file, OutputExists where no
    job wrote it, OutputUnwritable where it cannot be written. None of them changes the file. A limit is no
    part of a job: a run with a larger one continues.
    """
    lines = options.lines(source)
    provenance = options.provenance(scorer)
    with claim(path, source, provenance, overwrite=options.overwrite) as output:
        tally.provenance = read_header(output.header) if output.header else provenance
        earlier = earlier_answers(output, lines, scorer.stream)
        if earlier.torn:
            output.file.truncate(earlier.num_bytes)
        tally.records = tally.resumed = earlier.num_lines
        tally.errors.update(earlier.errors)
        try:
            _score(scorer, lines, output.file, tally, earlier.digest.update, tokens=options.tokens)
        finally:
            if tally.records > earlier.num_lines:
                output.seal(tally.records, earlier.digest.hexdigest())
        os.fsync(output.file.fileno())


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
        append(out, answer)
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

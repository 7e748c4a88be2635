"""What a finished Parquet output says of its job, and whether an input is still the one that it answers.

The metadata hold the number of lines and a digest of the fields that passed through scoring. An error line
has none: its error is compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from stepscore.errors import InputError, InputUnreadable, OutputExists, ResumeMismatch, StepscoreError
from stepscore.jobs.inputs.opening import open_input
from stepscore.jobs.inputs.row_lines import HEADER
from stepscore.jobs.jsonl import ParsedLine, read_lines
from stepscore.jobs.provenance import Provenance, is_header, read_header
from stepscore.jobs.resume import compare, resume_mismatch
from stepscore.jobs.schema import OUTPUT_NAMES, ErrorLine, ScoredLine, decode_line
from stepscore.records import AnyRecord

FACTS = b"stepscore.job"
MOST_ROW_BYTES = 1 << 30

_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JobFacts(msgspec.Struct, frozen=True):
    """Number of lines that an output answers, and the SHA-256 of their ids and fields."""

    lines: int
    sha256: str

    @classmethod
    def of(cls, answers: Iterator[bytes]) -> Self:
        """Return those of the lines of a job's output."""
        digest, count = hashlib.sha256(), 0
        for text in answers:
            count += 1
            answer = decode_line(text)
            if not isinstance(answer, ErrorLine):
                digest.update(_hashed(answer.id, _RAW.decode(text)))
        return cls(count, digest.hexdigest())


def _hashed(line_id: str | int, fields: Mapping[str, msgspec.Raw]) -> bytes:
    passed = [pair for pair in fields.items() if pair[0] not in OUTPUT_NAMES]
    return msgspec.json.encode([line_id, *passed]) + b"\n"


def require_parquet(path: Path) -> tuple[Provenance, JobFacts]:
    """Return origin and facts of a Parquet file that a job wrote; raise OutputExists for any other file."""
    with suppress(InputUnreadable, msgspec.MsgspecError), open_input(path) as file:
        metadata: Mapping[bytes, bytes] = getattr(file, "metadata", {})
        if is_header(metadata.get(HEADER, b"")):
            facts = msgspec.json.decode(metadata.get(FACTS, b""), type=JobFacts)
            return read_header(metadata[HEADER]), facts
    raise OutputExists(f"{path} was not written by stepscore", hint="give another output, or delete it")


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of an output, and the line that it answers."""

    number: int
    answer: ScoredLine | ErrorLine
    line: ParsedLine


def check_finished(
    path: Path,
    lines: Iterator[ParsedLine],
    job: Provenance,
    score: Callable[[Iterator[tuple[_Row, AnyRecord]]], Iterator[tuple[_Row, object]]],
) -> tuple[int, Counter[str]]:
    """Return the number of records of a finished output of this job and its errors by code.

    A record that had an error when it was scored is scored again, as an error line has no text. Raises
    ResumeMismatch where a row is not the answer to its line, OutputExists as `require_parquet` does.
    """
    origin, facts = require_parquet(path)
    compare(origin.fingerprint(), job, path)
    digest = hashlib.sha256()
    errors: Counter[str] = Counter()
    faults: list[ResumeMismatch] = []

    def to_score_again() -> Iterator[tuple[_Row, AnyRecord]]:
        try:
            for row in _rows(path, lines):
                if isinstance(row.answer, ErrorLine):
                    errors[row.answer.error.code] += 1
                    if not isinstance(row.line.record, InputError):
                        yield row, row.line.record
                else:
                    digest.update(_hashed(row.line.id, row.line.passthrough))
        except ResumeMismatch as error:
            faults.append(error)

    for row, outcome in score(to_score_again()):
        if not (isinstance(outcome, StepscoreError) and _is_error(row, outcome)):
            raise _mismatch(path, row)
    if faults:
        raise faults[0]
    if digest.hexdigest() != facts.sha256:
        raise resume_mismatch(path, "a field of the input has been changed since")
    if next(lines, None) is not None:
        raise resume_mismatch(path, f"it is finished with {facts.lines:,} rows, and the input has more lines")
    return facts.lines, errors


def _rows(path: Path, lines: Iterator[ParsedLine]) -> Iterator[_Row]:
    """Yield the rows with their lines; raise ResumeMismatch for the first that answers another line."""
    with open_input(path) as file:
        texts = (text for text in read_lines(file, MOST_ROW_BYTES) if not is_header(text))
        for number, text in enumerate(texts, 1):
            line = next(lines, None)
            if line is None:
                raise resume_mismatch(
                    path, f"it has more rows than this input, of which it answers {number - 1:,}"
                )
            row = _Row(number, decode_line(text), line)
            unread = isinstance(line.record, InputError) and not _is_error(row, line.record)
            if unread or str(row.answer.id) != str(line.id):
                raise _mismatch(path, row)
            yield row


def _is_error(row: _Row, error: StepscoreError) -> bool:
    expected = ErrorLine.of(row.line.id, error).error
    return isinstance(row.answer, ErrorLine) and row.answer.error == expected


def _mismatch(path: Path, row: _Row) -> ResumeMismatch:
    return resume_mismatch(
        path, f"its row {row.number:,} does not answer line {row.line.number} of the input"
    )

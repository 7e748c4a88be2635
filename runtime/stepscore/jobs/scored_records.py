"""Read scored lines again, with the fields that selection and evaluation need.

Texts stay in the file: a record keeps the offset of its line, so memory does not grow with their length.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import numpy as np

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord, NotScored
from stepscore.jobs.final_answers import answer_text, boxed
from stepscore.jobs.inputs.opening import open_input
from stepscore.jobs.jsonl import ParsedLine, parse_line, read_lines
from stepscore.jobs.schema import ErrorLine, decode_rewards
from stepscore.prompt.template import SEPARATOR
from stepscore.records import Record, record_of_output


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored solution; input fields that are missing, or of another type, are None."""

    id: str | int
    offset: int
    problem_id: str | int | None
    problem_digest: bytes
    """Digest of the problem's text, in which white space counts as one space."""
    cumulative_rewards: np.ndarray  # float64 [n]
    step_rewards: np.ndarray  # float64 [n]
    boxed: str | None
    answer: str | None
    final_answer: str | None
    final_answer_correct: bool | None
    label: int | None

    def series(self, series: Series) -> np.ndarray:
        """Return one reward per step, float64 [n]."""
        return self.cumulative_rewards if series is Series.CUMULATIVE else self.step_rewards


_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@contextmanager
def open_scored(source: str | Path) -> Iterator[BinaryIO]:
    """Open scored lines or rows, - for standard input, to be read twice: what cannot be is copied to disk."""
    with open_input(source) as lines:
        if isinstance(lines, io.RawIOBase) and lines.seekable():
            buffered = io.BufferedReader(lines)
            yield buffered
            buffered.detach()  # closing the buffer would close the source
            return
        if lines.seekable():
            yield lines
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(lines, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def read_scored(file: BinaryIO) -> Iterator[Scored | ErrorLine]:
    """Read line by line; an invalid line becomes an ErrorLine, an empty one is skipped, nothing is raised."""
    offset = file.tell()
    for index, text in enumerate(read_lines(file)):
        if text.strip():
            line = parse_line(text, index, record_of_output)
            try:
                yield _scored(line, text, offset)
            except InputError as error:
                yield ErrorLine.of(line.id, error)
        offset = file.tell()


def read_all(file: BinaryIO) -> tuple[list[Scored], list[ErrorLine]]:
    """Read a scored file; raise NotScored where no record has rewards."""
    records: list[Scored] = []
    failed: list[ErrorLine] = []
    for item in read_scored(file):
        if isinstance(item, ErrorLine):
            failed.append(item)
        else:
            records.append(item)
    if not records:
        first = f"; first error of {len(failed):,}: {failed[0].error.message}" if failed else ""
        raise NotScored(
            f"no record has rewards{first}", hint="give the output of `stepscore score`, not its input"
        )
    return records, failed


def line_with(file: BinaryIO, offset: int, added: Mapping[str, object]) -> bytes:
    """Return the line at an offset with fields added; the values of all other fields are copied as bytes."""
    file.seek(offset)
    fields: dict[str, object] = dict(_RAW_FIELDS.decode(file.readline()))
    return msgspec.json.encode({**fields, **added}) + b"\n"


def _scored(line: ParsedLine, text: bytes, offset: int) -> Scored | ErrorLine:
    try:
        answered = decode_rewards(text)
    except InputError as error:
        raise (line.record if isinstance(line.record, InputError) else error) from None
    if isinstance(answered, ErrorLine):
        return answered
    if isinstance(line.record, InputError):
        raise line.record
    cumulative, steps = (
        _rewards(name, values, line.record)
        for name, values in (
            ("cumulative_rewards", answered.cumulative_rewards),
            ("step_rewards", answered.step_rewards),
        )
    )
    correct, label = _value(line, "final_answer_correct"), _value(line, "label")
    return Scored(
        id=line.id,
        offset=offset,
        problem_id=_problem_id(line),
        problem_digest=blake2b(" ".join(line.record.problem.split()).encode(), digest_size=16).digest(),
        cumulative_rewards=cumulative,
        step_rewards=steps,
        boxed=boxed(SEPARATOR.join(line.record.steps)) or None,
        answer=answer_text(line.passthrough.get("answer")),
        final_answer=answer_text(line.passthrough.get("final_answer")),
        final_answer_correct=correct if isinstance(correct, bool) else None,
        label=label if isinstance(label, int) and not isinstance(label, bool) else None,
    )


def _value(line: ParsedLine, name: str) -> object:
    raw = line.passthrough.get(name)
    return None if raw is None else msgspec.json.decode(raw)


def _problem_id(line: ParsedLine) -> str | int | None:
    given = _value(line, "problem_id")
    if given is None or (isinstance(given, str | int) and not isinstance(given, bool)):
        return given
    raise InvalidRecord("`problem_id` must be a string or an integer")


def _rewards(name: str, values: list[float], record: Record) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.size != len(record.steps):
        raise InvalidRecord(f"{len(record.steps)} steps, but {array.size} `{name}`")
    if not np.isfinite(array).all():
        raise InvalidRecord(f"`{name}` contains a number that is not finite")
    return array

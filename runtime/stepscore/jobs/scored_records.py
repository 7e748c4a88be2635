"""Read scored lines again, with the fields that selection and evaluation need.

Texts stay in the file: a record keeps the offset of its line, so memory does not grow with their length.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec
import numpy as np

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord, NotScored
from stepscore.jobs.jsonl import ParsedLine, parse_line, read_lines
from stepscore.jobs.schema import ErrorLine, decode_line
from stepscore.prompt.template import SEPARATOR
from stepscore.records import Record, record_of_output


class ProblemKey(NamedTuple):
    """Identity of a problem: records with equal keys are samples of one problem."""

    field: str
    """`problem_id` where the record has it, else `problem`."""
    value: str | int


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored solution; input fields that are missing, or of another type, are None."""

    id: str | int
    offset: int
    problem: ProblemKey
    cumulative_rewards: np.ndarray  # float64 [n]
    step_rewards: np.ndarray  # float64 [n]
    answer: str | None
    final_answer: str | None
    final_answer_correct: bool | None
    label: int | None

    def series(self, series: Series) -> np.ndarray:
        """Return one reward per step, float64 [n]."""
        return self.cumulative_rewards if series is Series.CUMULATIVE else self.step_rewards


_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@contextmanager
def open_scored(source: str) -> Iterator[BinaryIO]:
    """Open a file of scored lines, - for standard input; a pipe is copied to disk, to be read twice."""
    with contextmanager(_opened)(source) as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield file


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
        answered = decode_line(text)
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
        problem=_problem_key(line, line.record),
        cumulative_rewards=cumulative,
        step_rewards=steps,
        answer=_text(line.passthrough.get("answer")) or boxed(SEPARATOR.join(line.record.steps)) or None,
        final_answer=_text(line.passthrough.get("final_answer")),
        final_answer_correct=correct if isinstance(correct, bool) else None,
        label=label if isinstance(label, int) and not isinstance(label, bool) else None,
    )


def _value(line: ParsedLine, name: str) -> object:
    raw = line.passthrough.get(name)
    return None if raw is None else msgspec.json.decode(raw)


def _problem_key(line: ParsedLine, record: Record) -> ProblemKey:
    given = _value(line, "problem_id")
    if given is None:
        return ProblemKey("problem", record.problem)
    if isinstance(given, str | int) and not isinstance(given, bool):
        return ProblemKey("problem_id", given)
    raise InvalidRecord("`problem_id` must be a string or an integer")


def _rewards(name: str, values: list[float], record: Record) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.size != len(record.steps):
        raise InvalidRecord(f"{len(record.steps)} steps, but {array.size} `{name}`")
    if not np.isfinite(array).all():
        raise InvalidRecord(f"`{name}` contains a number that is not finite")
    return array


def _text(value: msgspec.Raw | None) -> str | None:
    """Return a string, stripped, or a number as it is written; anything else is not an answer."""
    decoded = None if value is None else msgspec.json.decode(value)
    if isinstance(decoded, str):
        return decoded.strip() or None
    is_number = isinstance(decoded, int | float) and not isinstance(decoded, bool)
    return bytes(value).decode() if value is not None and is_number else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last closed \boxed{...} of a text, None if there is none.

    >>> boxed(r"So \boxed{1}. No: \boxed{\frac{1}{2}}."), boxed("It is 7.")
    ('\\frac{1}{2}', None)
    """
    for found in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth, at = 1, found.end()
        while at < len(text):
            if text[at] == "\\":  # \{ and \} are literal braces
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[found.end() : at].strip()
            at += 1
    return None

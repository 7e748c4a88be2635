"""What `stepscore score` wrote, read again: rewards, and the fields that choosing and judging need.

Text stays in the file: a record remembers where its line begins, so that memory does not grow with it.
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
from typing import BinaryIO, cast

import msgspec
import numpy as np

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord, NotScored
from stepscore.jobs.jsonl import ParsedLine, parse_line, read_lines
from stepscore.prompt.template import SEPARATOR
from stepscore.records import Record

ProblemKey = tuple[str, str | int]
"""`problem_id` and its value, or `problem` and its text."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One solution with rewards; fields that are missing, or of another type, are None."""

    id: str | int
    offset: int
    group: ProblemKey
    cumulative_rewards: np.ndarray  # float64 [n]
    step_rewards: np.ndarray  # float64 [n]
    answer: str | None
    final_answer: str | None
    final_answer_correct: bool | None
    label: int | None

    def series(self, series: Series) -> np.ndarray:
        """One reward a step, float64 [n]."""
        return self.cumulative_rewards if series is Series.CUMULATIVE else self.step_rewards


class Failed(msgspec.Struct, frozen=True):
    """A line without rewards, and why."""

    id: str | int
    code: str
    message: str


class _Error(msgspec.Struct):
    code: str
    message: str = ""


class _Fields(msgspec.Struct):
    cumulative_rewards: list[float] | None = None
    step_rewards: list[float] | None = None
    error: _Error | None = None
    problem_id: str | int | None = None
    answer: msgspec.Raw = msgspec.Raw(b"null")
    final_answer: msgspec.Raw = msgspec.Raw(b"null")
    final_answer_correct: msgspec.Raw = msgspec.Raw(b"null")
    label: msgspec.Raw = msgspec.Raw(b"null")


_FIELDS = msgspec.json.Decoder(_Fields)
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@contextmanager
def open_scored(source: str) -> Iterator[BinaryIO]:
    """Open a file of scored records, - for standard input; what cannot be read twice is copied to disk."""
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


def read_scored(file: BinaryIO) -> Iterator[Scored | Failed]:
    """Read line by line; whatever is wrong with a line becomes a Failed, nothing is raised."""
    offset = file.tell()
    for index, text in enumerate(read_lines(file)):
        line = parse_line(text, index)
        try:
            yield _scored(line, text, offset)
        except InputError as error:
            yield Failed(line.id, error.code, error.message)
        offset = file.tell()


def read_all(file: BinaryIO) -> tuple[list[Scored], list[Failed]]:
    """Read a scored file; raise NotScored where no record of it has rewards."""
    records: list[Scored] = []
    failed: list[Failed] = []
    for item in read_scored(file):
        if isinstance(item, Failed):
            failed.append(item)
        else:
            records.append(item)
    if not records:
        first = f"; the first of {len(failed):,}: {failed[0].message}" if failed else ""
        raise NotScored(
            f"no record has rewards{first}", hint="give a file that `stepscore score` wrote, not its input"
        )
    return records, failed


def line_with(file: BinaryIO, offset: int, added: Mapping[str, object]) -> bytes:
    """Return the line at an offset with fields added; the bytes of all others' values stay as they are."""
    file.seek(offset)
    fields: dict[str, object] = dict(_RAW_FIELDS.decode(file.readline()))
    return msgspec.json.encode({**fields, **added}) + b"\n"


def _scored(line: ParsedLine, text: bytes, offset: int) -> Scored | Failed:
    try:
        fields = _FIELDS.decode(text)
    except (ValueError, RecursionError) as error:
        raise (
            line.record if isinstance(line.record, InputError) else InvalidRecord(str(error)[:200])
        ) from None
    if fields.error is not None and fields.cumulative_rewards is None:
        return Failed(line.id, fields.error.code, fields.error.message)
    if isinstance(line.record, InputError):
        raise line.record
    cumulative, steps = (
        _rewards(name, values, line.record)
        for name, values in (
            ("cumulative_rewards", fields.cumulative_rewards),
            ("step_rewards", fields.step_rewards),
        )
    )
    answer = _text(fields.answer)
    group: ProblemKey = ("problem", line.record.problem)
    if fields.problem_id is not None:
        group = ("problem_id", fields.problem_id)
    correct, label = msgspec.json.decode(fields.final_answer_correct), msgspec.json.decode(fields.label)
    return Scored(
        id=line.id,
        offset=offset,
        group=group,
        cumulative_rewards=cumulative,
        step_rewards=steps,
        answer=answer or boxed(SEPARATOR.join(line.record.steps)) or None,
        final_answer=_text(fields.final_answer),
        final_answer_correct=correct if isinstance(correct, bool) else None,
        label=label if isinstance(label, int) and not isinstance(label, bool) else None,
    )


def _rewards(name: str, values: list[float] | None, record: Record) -> np.ndarray:
    if values is None:
        raise InvalidRecord(f"`{name}` is missing: score the record first")
    array = np.array(values, dtype=np.float64)
    if array.size != len(record.steps) or not array.size:
        raise InvalidRecord(f"{len(record.steps)} steps, but {array.size} `{name}`")
    if not np.isfinite(array).all():
        raise InvalidRecord(f"`{name}` holds a number that is not finite")
    return array


def _text(value: msgspec.Raw) -> str | None:
    """A string, stripped, or a number as it is written; everything else is no answer."""
    decoded = msgspec.json.decode(value)
    if isinstance(decoded, str):
        return decoded.strip() or None
    is_number = isinstance(decoded, int | float) and not isinstance(decoded, bool)
    return bytes(value).decode() if is_number else None


def boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} of a text holds, None if there is none that is closed.

    >>> boxed(r"So \boxed{1}. No: \boxed{\frac{1}{2}}."), boxed("It is 7.")
    ('\\frac{1}{2}', None)
    """
    for found in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth, at = 1, found.end()
        while at < len(text):
            if text[at] == "\\":  # \{ and \} are characters
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[found.end() : at].strip()
            at += 1
    return None

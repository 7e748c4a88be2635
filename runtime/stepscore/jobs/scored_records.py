"""Read scored lines again, with the fields that selection and evaluation need.

Texts stay in the file: a record keeps the offset of its line, so memory does not grow with their length.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import numpy as np

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord, NotScored
from stepscore.jobs.final_answers import answer_text, boxed
from stepscore.jobs.inputs.opening import open_input
from stepscore.jobs.jsonl import ParsedLine, parse_line, read_lines
from stepscore.jobs.provenance import Headers, Provenance, combined
from stepscore.jobs.schema import ErrorLine, RewardsLine, decode_rewards
from stepscore.jobs.seal import beside
from stepscore.jobs.shards import group_digest
from stepscore.prompt.template import SEPARATOR
from stepscore.records import AnyRecord, Record, record_of_output
from stepscore.rewards import read_series


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored solution; input fields that are missing, or of another type, are None."""

    id: str | int
    offset: int
    problem_id: str | int | None
    problem_digest: bytes
    """Digest of the problem's text, in which white space counts as one space, or of the prompt's ids."""
    scores: np.ndarray  # float64 [n], one per step, in the series that was asked for
    sums_prompt: bool
    """The cumulative rewards hold the log-ratios of the prompt, as by the convention `card`."""
    boxed: str | None
    answer: str | None
    final_answer: str | None
    final_answer_correct: bool | None
    label: int | None


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """A scored file: its records, its lines with errors, and what it says of their origin."""

    records: list[Scored]
    failed: list[ErrorLine]
    provenance: Provenance


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


def read_scored(file: BinaryIO, series: Series, headers: Headers) -> Iterator[Scored | ErrorLine]:
    """Read line by line; an invalid line becomes an ErrorLine, an empty one is skipped.

    A line without the numbers that `series` needs is invalid: earlier versions wrote no `first_summed`.
    Headers are collected in `headers`, which raises HeaderInvalid.
    """
    offset = file.tell()
    for index, text in enumerate(read_lines(file)):
        if not headers.take(text) and text.strip():
            line = parse_line(text, index, record_of_output)
            try:
                yield _scored(line, text, offset, series)
            except InputError as error:
                yield ErrorLine.of(line.id, error)
        offset = file.tell()


def read_all(file: BinaryIO, source: str, series: Series) -> ScoredFile:
    """Read a scored file, of which `source` is the path or -.

    Raises NotScored where no record has rewards in this series, NotComparable where headers differ,
    HeaderInvalid.
    """
    records: list[Scored] = []
    failed: list[ErrorLine] = []
    headers = Headers("standard input" if source == "-" else source)
    for item in read_scored(file, series, headers):
        if isinstance(item, ErrorLine):
            failed.append(item)
        else:
            records.append(item)
    if not records:
        first = f"; first error of {len(failed):,}: {failed[0].error.message}" if failed else ""
        raise NotScored(
            f"no record has rewards{first}", hint="give the output of `stepscore score`, not its input"
        )
    return ScoredFile(records, failed, origin(headers, source))


def origin(headers: Headers, source: str) -> Provenance:
    """Return the provenance of a file whose lines were read: by its headers, else by the file beside it."""
    found = headers.provenance()
    if found is None and source != "-":
        found = beside(Path(source))
    return found or Provenance()


def origin_of_all(files: Iterable[tuple[str, ScoredFile]]) -> Provenance:
    """Return the provenance of files, with their names, that are read as one; raise NotComparable."""
    return combined({name: file.provenance for name, file in files}) or Provenance()


def line_with(file: BinaryIO, offset: int, added: Mapping[str, object]) -> bytes:
    """Return the line at an offset with fields added; the values of all other fields are copied as bytes."""
    file.seek(offset)
    fields: dict[str, object] = dict(_RAW_FIELDS.decode(file.readline()))
    return msgspec.json.encode({**fields, **added}) + b"\n"


def _scored(line: ParsedLine, text: bytes, offset: int, series: Series) -> Scored | ErrorLine:
    try:
        answered = decode_rewards(text)
    except InputError as error:
        raise (line.record if isinstance(line.record, InputError) else error) from None
    if isinstance(answered, ErrorLine):
        return answered
    if isinstance(line.record, InputError):
        raise line.record
    correct, label = _value(line, "final_answer_correct"), _value(line, "label")
    return Scored(
        id=line.id,
        offset=offset,
        problem_id=_problem_id(line),
        problem_digest=group_digest(line.record),
        scores=_scores(answered, line.record, series),
        sums_prompt=isinstance(line.record, Record) and _sums_prompt(answered),
        boxed=boxed(SEPARATOR.join(line.record.steps)) or None if isinstance(line.record, Record) else None,
        answer=answer_text(line.passthrough.get("answer")),
        final_answer=answer_text(line.passthrough.get("final_answer")),
        final_answer_correct=correct if isinstance(correct, bool) else None,
        label=label if isinstance(label, int) and not isinstance(label, bool) else None,
    )


def _scores(answered: RewardsLine, record: AnyRecord, series: Series) -> np.ndarray:
    num_steps = len(record.steps) if isinstance(record, Record) else len(answered.step_ends or ())
    cumulative = _rewards("cumulative_rewards", answered.cumulative_rewards, num_steps)
    steps = _rewards("step_rewards", answered.step_rewards, num_steps)
    if not series.is_normalized:
        return cumulative if series is Series.CUMULATIVE else steps
    if answered.step_ends is None or answered.first_summed is None:
        raise InvalidRecord(
            f"`{'step_ends' if answered.step_ends is None else 'first_summed'}` is missing, which the series "
            f"`{series}` divides by: score the record with this version of stepscore"
        )
    counts = np.array(answered.step_ends, np.int64) - answered.first_summed + 1
    try:
        return read_series(series, cumulative, steps, counts)
    except ValueError as error:
        raise InvalidRecord(f"`step_ends` and `first_summed` do not match: {error}") from None


def _sums_prompt(answered: RewardsLine) -> bool:
    start, first = answered.response_start, answered.first_summed
    return start is not None and first is not None and first < start - 1


def _value(line: ParsedLine, name: str) -> object:
    raw = line.passthrough.get(name)
    return None if raw is None else msgspec.json.decode(raw)


def _problem_id(line: ParsedLine) -> str | int | None:
    given = _value(line, "problem_id")
    if given is None or (isinstance(given, str | int) and not isinstance(given, bool)):
        return given
    raise InvalidRecord("`problem_id` must be a string or an integer")


def _rewards(name: str, values: list[float], num_steps: int) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.size != num_steps:
        raise InvalidRecord(f"{num_steps} steps, but {array.size} `{name}`")
    if not np.isfinite(array).all():
        raise InvalidRecord(f"`{name}` contains a number that is not finite")
    return array

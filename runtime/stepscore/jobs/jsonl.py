"""Parse input lines and encode output lines of a job (JSONL)."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import msgspec

from stepscore.errors import (
    InputError,
    InputUnreadable,
    InvalidJson,
    InvalidRecord,
    NonFinite,
    StepscoreError,
    TooLarge,
)
from stepscore.jobs.provenance import is_header
from stepscore.jobs.schema import MAX_ID_CHARS, OUTPUT_NAMES, ErrorLine, ScoredLine
from stepscore.records import BY_ACCEPTED_NAMES, MESSAGES, AnyRecord, Record, TokenRecord, record_of_output
from stepscore.results import Result, TokenResult

MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """One parsed input line: a record to score or an error, and the fields to pass through.

    `index` counts the lines before it that are neither empty nor headers, `number` is its 1-based number in
    the file.
    """

    index: int
    number: int
    given_id: str | int | None
    record: AnyRecord | InputError
    passthrough: Mapping[str, msgspec.Raw]

    @property
    def id(self) -> str | int:
        """Return the given id, else the 0-based index of the line."""
        return self.index if self.given_id is None else self.given_id


def read_lines(source: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield lines without their line feed; a line over max_bytes is cut to max_bytes + 1 bytes.

    A line is yielded once all of it is read, so that `source.tell()` is then where the next one begins.
    """
    lines = io.BufferedReader(source) if isinstance(source, io.RawIOBase) else source
    try:
        while line := _readline(lines, max_bytes + 1):
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            rest = line
            while len(rest) > max_bytes and not rest.endswith(b"\n"):
                rest = _readline(lines, max_bytes + 1)
            yield line
    finally:
        if lines is not source:
            with contextlib.suppress(ValueError):  # the source has been closed
                cast(io.BufferedReader, lines).detach()  # closing the buffer would close the source


def _readline(lines: BinaryIO, most: int) -> bytes:
    try:
        return lines.readline(most)
    except OSError as error:
        raise InputUnreadable(
            f"cannot read the input: {error.strerror or error}",
            hint="copy the file again, or from its source",
        ) from None


def not_empty(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that hold more than white space and are not headers, each with its 1-based number."""
    return (
        (number, line)
        for number, line in enumerate(lines, 1)
        if line and not line.isspace() and not is_header(line)
    )


def parse_line(
    line: bytes,
    index: int,
    read: Callable[[Mapping[str, Any]], AnyRecord] = BY_ACCEPTED_NAMES.record,
    *,
    number: int | None = None,
) -> ParsedLine:
    """Parse one line; an invalid line has its error in `record`, nothing is raised.

    `problem` and `steps` are added to the fields that pass through where no accepted name has them as they
    are: where they were read from other fields or a conversation, or split.
    """
    number = index + 1 if number is None else number
    given_id: str | int | None = None
    try:
        fields, raw = _decode(line)
        given_id = _given_id(fields)
        record = read(fields)
    except InputError as error:
        return ParsedLine(index, number, given_id, error.untraced(), {})
    passed = {name: value for name, value in raw.items() if name not in OUTPUT_NAMES}
    if isinstance(record, Record) and not _gives(fields, record):
        passed |= {"problem": _raw(record.problem), "steps": _raw(record.steps)}
    return ParsedLine(index, number, given_id, record, passed)


def output_line(
    line: ParsedLine, outcome: Result | TokenResult | InputError | NonFinite, *, tokens: bool = False
) -> bytes:
    """Return the output line that answers `line`, line feed included.

    Rewards are float64, log-probs and token rewards float32, printed as the shortest decimal that reads back
    equal. `tokens` writes the token-level values of a TokenResult, which always has them.
    """
    if isinstance(outcome, StepscoreError):
        return msgspec.json.encode(ErrorLine.of(line.id, outcome)) + b"\n"
    if isinstance(outcome, TokenResult):
        assert isinstance(line.record, TokenRecord)  # a result of token ids answers a record of them
        return scored_line(line, ScoredLine.of_ids(line.id, line.record, outcome, tokens=tokens))
    return scored_line(line, ScoredLine.of(line.id, outcome))


def scored_line(line: ParsedLine, scored: ScoredLine) -> bytes:
    """Return the fields that pass through and those that scoring adds, line feed included."""
    return msgspec.json.encode({**line.passthrough, **msgspec.to_builtins(scored)}) + b"\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidJson(f"duplicate key {twice[:100]!r} in one object")
    return fields


# Two passes over one line: msgspec enforces strict JSON (no NaN, no lone surrogate, no control character) and
# keeps the bytes of fields that pass through; only the standard library can detect a duplicate key.
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUES = json.JSONDecoder(object_pairs_hook=_unique)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")


def _decode(line: bytes) -> tuple[dict[str, Any], dict[str, msgspec.Raw]]:
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(f"the line has more than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        raise InvalidJson("the line is empty")
    try:
        text = line.decode("utf-8")
        if text.startswith("\ufeff"):
            raise InvalidJson("the line starts with a byte order mark: save the file as UTF-8 without BOM")
        values = _VALUES.decode(text)
        _refuse_lone_surrogates(text, values)
        _refuse_not_finite(text, values)
        return values, _RAW_FIELDS.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidJson(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise InvalidJson("nested too deeply") from None
    except msgspec.ValidationError:
        raise InvalidRecord("the line is not a JSON object") from None
    except ValueError as error:
        raise InvalidJson(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None


def _refuse_lone_surrogates(text: str, values: object) -> None:
    """Raise InvalidJson, naming the field, where a string is not Unicode: JSON can spell half a character."""
    if not _SURROGATE.search(text):
        return
    named = values.items() if isinstance(values, dict) else [("", values)]
    for name, value in named:
        found = _LONE.search(json.dumps([name, value], ensure_ascii=False))
        if found:
            where = f"`{name[:100]}`" if name and not _LONE.search(name) else "the line"
            raise InvalidJson(
                f"{where} holds the lone surrogate \\u{ord(found[0]):04x}, half of a character: text was cut "
                "within one"
            )


def _refuse_not_finite(text: str, values: object) -> None:
    """Raise InvalidJson, naming the field, where Python or a table wrote NaN: JSON has no such number."""
    if "NaN" not in text and "Infinity" not in text:
        return
    for name, value in values.items() if isinstance(values, dict) else [("", values)]:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise InvalidJson(f"`{name[:100]}` holds NaN or Infinity, which JSON has no number for") from None


def _gives(fields: Mapping[str, Any], record: Record) -> bool:
    """Return whether the fields have this problem and these steps, as they are."""
    try:
        return record_of_output({name: value for name, value in fields.items() if name != MESSAGES}) == record
    except InputError:
        return False


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _given_id(fields: Mapping[str, Any]) -> str | int | None:
    value = fields.get("id")
    if value is None or (isinstance(value, str) and len(value) <= MAX_ID_CHARS):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise InvalidRecord(f"`id` must be a 64-bit integer or a string of at most {MAX_ID_CHARS} characters")

"""JSONL lines in: text -> record or error, ids, limits."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import msgspec

from stepscore.errors import InputError, InvalidJson, InvalidRecord, NonFinite, StepscoreError, TooLarge
from stepscore.records import Record, Result, record_from

OUTPUT_NAMES = (
    *("id", "cumulative_rewards", "step_rewards", "outcome_reward", "num_tokens", "step_ends"),
    *("special_text", "token_ids", "token_texts", "policy_logprobs", "reference_logprobs", "error"),
)


MAX_LINE_BYTES = 4 << 20


MAX_ID_CHARS = 1000


MAX_MESSAGE_CHARS = 299


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """What one line of input holds: something to score, or the reason why not."""

    index: int
    given_id: str | int | None
    record: Record | InputError
    passthrough: Mapping[str, msgspec.Raw]

    @property
    def id(self) -> str | int:
        """The id given, else the 0-based index of the line."""
        return self.index if self.given_id is None else self.given_id


def read_lines(source: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield lines without their line feed; of a longer line only the first max_bytes + 1 bytes."""
    lines = io.BufferedReader(source) if isinstance(source, io.FileIO) else source
    try:
        while line := lines.readline(max_bytes + 1):
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            yield line
            while len(line) > max_bytes and not line.endswith(b"\n"):
                line = lines.readline(max_bytes + 1)
    finally:
        if lines is not source:
            with contextlib.suppress(ValueError):  # the source was closed meanwhile
                cast(io.BufferedReader, lines).detach()  # or it would be closed with the buffer


def parse_line(line: bytes, index: int) -> ParsedLine:
    """Parse one line; whatever is wrong with it ends up in `record`, nothing is raised."""
    given_id: str | int | None = None
    try:
        fields, raw = _decode(line)
        given_id = _given_id(fields)
        record = record_from(fields)
    except InputError as error:
        return ParsedLine(index, given_id, error, {})
    passed = {name: value for name, value in raw.items() if name not in OUTPUT_NAMES}
    return ParsedLine(index, given_id, record, passed)


def output_line(line: ParsedLine, outcome: Result | InputError | NonFinite) -> bytes:
    """Return the line that answers `line`, line feed included.

    Rewards are float64 and log-probs float32, both printed as the shortest decimal that reads back equal.
    """
    if isinstance(outcome, StepscoreError):
        error = {"code": outcome.code, "message": _short(outcome.message)}
        return msgspec.json.encode({"id": line.id, "error": error}) + b"\n"
    fields: dict[str, object] = {
        **line.passthrough,
        "id": line.id,
        "cumulative_rewards": outcome.cumulative_rewards,
        "step_rewards": outcome.step_rewards,
        "outcome_reward": outcome.outcome_reward,
        "num_tokens": outcome.num_tokens,
        "step_ends": outcome.step_ends,
    }
    if outcome.special_text:
        fields["special_text"] = True
    if outcome.token_ids is not None:
        fields["token_ids"] = outcome.token_ids.tolist()
        fields["token_texts"] = outcome.token_texts
        fields["policy_logprobs"] = _float32_array(outcome.policy_logprobs)
        fields["reference_logprobs"] = _float32_array(outcome.reference_logprobs)
    return msgspec.json.encode(fields) + b"\n"


def _float32_array(values: Any) -> msgspec.Raw:
    # str() of a numpy float32 is its shortest decimal; msgspec would print the float64 of the same value.
    return msgspec.Raw("[" + ",".join(map(str, values)) + "]")


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 3] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise InvalidJson(f"the key {twice[:100]!r} occurs twice in one object")
    return fields


# Two passes over one line. msgspec is the judge of what JSON is (no NaN, no lone surrogate, no control
# character) and keeps other fields' bytes as they are; only the standard library can see a key twice.
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


_VALUES = json.JSONDecoder(object_pairs_hook=_unique)


def _decode(line: bytes) -> tuple[dict[str, Any], dict[str, msgspec.Raw]]:
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(f"the line has more than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        raise InvalidJson("the line is empty")
    try:
        text = line.decode("utf-8")
        if text.startswith("\ufeff"):
            raise InvalidJson("the line starts with a byte order mark: save the file as UTF-8 without it")
        return _VALUES.decode(text), _RAW_FIELDS.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidJson(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise InvalidJson("nested too deeply") from None
    except msgspec.ValidationError:
        raise InvalidRecord("the line is not a JSON object") from None
    except ValueError as error:
        raise InvalidJson(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None


def _given_id(fields: Mapping[str, Any]) -> str | int | None:
    value = fields.get("id")
    if value is None or (isinstance(value, str) and len(value) <= MAX_ID_CHARS):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise InvalidRecord(f"`id` must be a 64-bit integer or a string of at most {MAX_ID_CHARS} characters")

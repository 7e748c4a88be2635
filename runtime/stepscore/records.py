"""One line of a job, in and out: JSON text -> record, result -> JSON text.

    {"id": 7, "problem": "1+1?", "steps": ["2", "Done."], "label": -1}        in
    {"problem": "1+1?", "steps": [...], "label": -1, "id": 7, "cumulative_rewards": [...], ...}  out
    {"id": 7, "error": {"code": "no_steps", "message": "..."}}                 out, when it cannot be scored

`query` and `prompt` are accepted for `problem`; `answer` and `completions` for `steps`. A string `answer`
beside another field of steps is the final answer. Every field passes through byte for byte, so that what
reads the output needs no join with the input; a field with the name of an output field gives way to ours.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import msgspec

from stepscore.errors import InputError, InvalidJson, InvalidRecord, NonFinite, StepscoreError, TooLarge

if TYPE_CHECKING:
    from stepscore.scorer import Result

PROBLEM_NAMES = ("problem", "query", "prompt")
STEPS_NAMES = ("steps", "answer", "completions")
OUTPUT_NAMES = (
    *("id", "cumulative_rewards", "step_rewards", "outcome_reward", "num_tokens", "step_ends"),
    *("special_text", "token_ids", "token_texts", "policy_logprobs", "reference_logprobs", "error"),
)
MAX_LINE_BYTES = 4 << 20
MAX_ID_CHARS = 1000
MAX_MESSAGE_CHARS = 299

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A problem and its solution, step by step.

    An `unfinished` one is a search's: a blank line closes its last step, and what follows is not known yet.
    """

    problem: str
    steps: tuple[str, ...]
    unfinished: bool = False


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


def record_from(fields: Mapping[str, Any]) -> Record:
    """Return the record a mapping holds under any of the accepted names; raise InvalidRecord.

    >>> record_from({"query": "1+1?", "answer": ["2"]})
    Record(problem='1+1?', steps=('2',), unfinished=False)
    """
    problem_names = [name for name in PROBLEM_NAMES if name in fields]
    steps_names = [name for name in STEPS_NAMES if name in fields]
    if len(steps_names) > 1 and "answer" in steps_names and not isinstance(fields["answer"], list | tuple):
        steps_names.remove("answer")
    problem = _agreed("problem", {name: _problem(name, fields[name]) for name in problem_names})
    steps = _agreed("steps", {name: _steps(name, fields[name]) for name in steps_names})
    return Record(problem, steps)


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


def _agreed(meaning: str, values: Mapping[str, T]) -> T:
    if not values:
        raise InvalidRecord(f"`{meaning}` is missing")
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise InvalidRecord(f"`{first}` and `{name}` are both given, and differ")
    return value


def _problem(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise InvalidRecord(
            f"`{name}` must be a string, not a list (of chat messages?): give the problem's text alone, "
            "the pair's own chat template adds the turns"
        )
    raise InvalidRecord(f"`{name}` must be a string, not {_json_type(value)}")


def _steps(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidRecord(f"`{name}` must be a list of strings, not {_json_type(value)}")
    for position, step in enumerate(value):
        if not isinstance(step, str):
            raise InvalidRecord(f"`{name}[{position}]` must be a string, not {_json_type(step)}")
    return tuple(value)


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

"""Check what an earlier run of a job wrote against its input, line by line.

Every whole line of the output must be, byte for byte, what this job would write for the input line that it
answers. Fields that pass through are compared with the input. Rewards are not computed again but compared
with each other, and with the digest that a run leaves at its end. An error line holds no text, so a record
that had an error only when it was scored is scored again. A torn last line is left for the caller to cut off.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stepscore.errors import DuplicateId, InputError, InvalidJson, ResumeMismatch, TooLarge
from stepscore.jobs.jsonl import ParsedLine, output_line, scored_line
from stepscore.jobs.resume import DIGEST, LINES, read_fingerprint, resume_mismatch
from stepscore.jobs.schema import OUTPUT_NAMES, ErrorLine, ScoredLine, decode_line
from stepscore.records import AnyRecord, Outcome, TokenOutcome, TokenRecord

Answered = tuple[ParsedLine, bytes]
"""An input line, and the output line that answers it."""

SHOWN_CHARS = 60
_UNREADABLE = {InvalidJson.code, TooLarge.code, DuplicateId.code}
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(slots=True)
class Earlier:
    """Whole lines of an earlier run, which a torn one may follow."""

    num_lines: int = 0
    num_bytes: int = 0
    torn: bool = False
    errors: Counter[str] = field(default_factory=Counter)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


def earlier_answers(
    path: Path,
    lines: Iterator[ParsedLine],
    score: Callable[
        [Iterable[tuple[Answered, AnyRecord]]], Iterator[tuple[Answered, Outcome | TokenOutcome]]
    ],
) -> Earlier:
    """Read the output so far, and from `lines` the input line that each of its lines answers.

    Raises ResumeMismatch, naming the first line that differs.
    """
    earlier = Earlier()
    faults: list[ResumeMismatch] = []

    def to_score_again() -> Iterator[tuple[Answered, AnyRecord]]:
        try:
            yield from _compared(path, lines, earlier)
        except ResumeMismatch as error:  # the records before it come first
            faults.append(error)

    for (line, text), outcome in score(to_score_again()):
        if output_line(line, outcome) != text:
            faults.insert(0, _mismatch(path, line, "the record has been changed, or its error edited"))
            break
    if faults:
        raise faults[0]
    return earlier


def _compared(
    path: Path, lines: Iterator[ParsedLine], earlier: Earlier
) -> Iterator[tuple[Answered, AnyRecord]]:
    """Compare output and input; yield the records whose error only scoring can show."""
    fingerprint = read_fingerprint(path)
    sealed, digest = fingerprint.get(LINES), fingerprint.get(DIGEST)
    with path.open("rb") as output:
        for text in output:
            if not text.endswith(b"\n"):
                earlier.torn = True
                return
            line = next(lines, None)
            if line is None:
                raise resume_mismatch(
                    path, f"it has more lines than this input, of which it answers {earlier.num_lines:,}"
                )
            answer = _decoded(text, path, line)
            difference = _difference(text, answer, line)
            if difference is not None:
                raise _mismatch(path, line, difference)
            earlier.num_lines += 1
            earlier.num_bytes += len(text)
            earlier.digest.update(text)
            if isinstance(answer, ErrorLine):
                earlier.errors[answer.error.code] += 1
                if not isinstance(line.record, InputError):
                    yield (line, text), line.record
            if sealed == str(earlier.num_lines) and digest != earlier.digest.hexdigest():
                raise resume_mismatch(path, f"a number in its first {sealed} lines was edited")


def _decoded(text: bytes, path: Path, line: ParsedLine) -> ScoredLine | ErrorLine:
    try:
        return decode_line(text)
    except InputError as error:
        raise resume_mismatch(path, f"its line {line.index + 1} is {error.message}") from None


def _difference(text: bytes, answer: ScoredLine | ErrorLine, line: ParsedLine) -> str | None:
    """Say how an output line differs from the answer to its input line; None also for an error of scoring."""
    if isinstance(line.record, InputError):
        return None if text == output_line(line, line.record) else f"the input has {line.record.code} there"
    if isinstance(answer, ErrorLine):
        return "the line has been mended" if answer.error.code in _UNREADABLE else None
    if (type(answer.id), answer.id) != (type(line.id), line.id):
        return f"`id` was {_shown(answer.id)}, now {_shown(line.id)}"
    if text == scored_line(line, answer):
        return _inconsistency(answer, line.record)
    written = {name: value for name, value in _RAW_FIELDS.decode(text).items() if name not in OUTPUT_NAMES}
    for name in {**line.passthrough, **written}:
        was, now = _spelled(written, name), _spelled(line.passthrough, name)
        if was != now:
            return f"`{name[:SHOWN_CHARS]}` was {was[:SHOWN_CHARS]}, now {now[:SHOWN_CHARS]}"
    return "its fields are in another order, or not spelled as stepscore does"


def _inconsistency(answer: ScoredLine, record: AnyRecord) -> str | None:
    """Say how the numbers of a line contradict each other, as they do where one of them was edited."""
    if isinstance(record, TokenRecord):
        fault, num_steps = _other_tokens(answer, record), len(answer.step_ends)
        if fault is not None:
            return fault
    else:
        num_steps = len(record.steps)
    steps, cumulative = answer.step_rewards, answer.cumulative_rewards
    if not len(steps) == len(cumulative) == len(answer.step_ends) == num_steps:
        return "it has not one reward per step"
    scale = max(map(abs, cumulative))
    sums = zip(cumulative, [0.0, *cumulative[:-1]], steps, strict=True)
    agree = all(math.isclose(total - before, step, abs_tol=1e-9 * scale) for total, before, step in sums)
    if not agree or cumulative[-1] != answer.outcome_reward:
        return "its rewards contradict each other: they were edited"
    return None


def _other_tokens(answer: ScoredLine, record: TokenRecord) -> str | None:
    """Say how a line contradicts the token ids that it answers."""
    prompt, response = len(record.prompt_token_ids), len(record.response_token_ids)
    if (answer.num_tokens, answer.response_start, answer.first_summed) != (prompt + response, prompt, 0):
        return "its numbers of tokens are not those of the token ids"
    values = answer.policy_logprobs, answer.reference_logprobs, answer.token_rewards
    if any(each is not None and len(each) != response for each in values):
        return "it has not one value per token of the response"
    ends = tuple(answer.step_ends)
    if record.step_ends not in (None, ends):
        return f"`step_ends` was {_shown(ends)}, now {_shown(record.step_ends)}"
    return None


def _mismatch(path: Path, line: ParsedLine, difference: str) -> ResumeMismatch:
    return resume_mismatch(
        path, f"its line {line.index + 1} does not answer line {line.number} of the input: {difference}"
    )


def _spelled(fields: Mapping[str, msgspec.Raw], name: str) -> str:
    return bytes(fields[name]).decode(errors="replace") if name in fields else "not there"


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()[:SHOWN_CHARS]

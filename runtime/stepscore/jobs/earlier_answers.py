"""Check what an earlier run of a job wrote against its input, line by line.

Every whole line of the output behind its header must be, byte for byte, what this job would write for the
input line that it answers. Fields that pass through are compared with the input. Rewards are not computed
again but compared with each other, and with the digest that a run leaves at its end. An error line holds no
text, so a record that had an error only when it was scored is scored again. A torn last line is left for the
caller to cut off.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from stepscore.errors import DuplicateId, InputError, InvalidJson, ResumeMismatch, TooLarge
from stepscore.jobs.jsonl import ParsedLine, output_line, scored_line
from stepscore.jobs.resume import Claim, resume_mismatch
from stepscore.jobs.schema import OUTPUT_NAMES, ErrorLine, ScoredLine, decode_line
from stepscore.records import AnyRecord, TokenRecord
from stepscore.results import Outcome, TokenOutcome

Answered = tuple[ParsedLine, bytes, int]
"""An input line, the output line that answers it, and the number of that line in its file."""

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
    output: Claim,
    lines: Iterator[ParsedLine],
    score: Callable[
        [Iterable[tuple[Answered, AnyRecord]]], Iterator[tuple[Answered, Outcome | TokenOutcome]]
    ],
) -> Earlier:
    """Read the output so far, and from `lines` the input line that each of its lines answers.

    Raises ResumeMismatch, naming the first line that differs.
    """
    earlier = Earlier(num_bytes=len(output.header), digest=hashlib.sha256(output.header))
    faults: list[ResumeMismatch] = []

    def to_score_again() -> Iterator[tuple[Answered, AnyRecord]]:
        try:
            yield from _compared(output, lines, earlier)
        except ResumeMismatch as error:  # the records before it come first
            faults.append(error)

    for (line, text, at), outcome in score(to_score_again()):
        if output_line(line, outcome) != text:
            faults.insert(0, _mismatch(output, at, line, "the record has been changed, or its error edited"))
            break
    if faults:
        raise faults[0]
    return earlier


def _compared(
    claim: Claim, lines: Iterator[ParsedLine], earlier: Earlier
) -> Iterator[tuple[Answered, AnyRecord]]:
    """Compare output and input; yield the records whose error only scoring can show."""
    if claim.path.stat().st_size == len(claim.header):
        return
    sealed = claim.read_seal()
    with claim.path.open("rb") as output:
        output.seek(len(claim.header))
        for at, text in enumerate(output, 2 if claim.header else 1):
            if not text.endswith(b"\n"):
                earlier.torn = True
                return
            line = next(lines, None)
            if line is None:
                raise resume_mismatch(
                    claim.path,
                    f"it has more lines than this input, of which it answers {earlier.num_lines:,}",
                )
            answer = _decoded(text, claim, at)
            fault = difference(text, answer, line)
            if fault is not None:
                raise _mismatch(claim, at, line, fault)
            earlier.num_lines += 1
            earlier.num_bytes += len(text)
            earlier.digest.update(text)
            if isinstance(answer, ErrorLine):
                earlier.errors[answer.error.code] += 1
                if not isinstance(line.record, InputError):
                    yield (line, text, at), line.record
            lines_then, digest = sealed or ("", "")
            if lines_then == str(earlier.num_lines) and digest != earlier.digest.hexdigest():
                raise resume_mismatch(claim.path, f"a number in its first {lines_then} lines was edited")


def _decoded(text: bytes, claim: Claim, at: int) -> ScoredLine | ErrorLine:
    try:
        return decode_line(text)
    except InputError as error:
        raise resume_mismatch(claim.path, f"its line {at} is {error.message}") from None


def difference(text: bytes, answer: ScoredLine | ErrorLine, line: ParsedLine) -> str | None:
    """Say how an output line differs from the answer to its input line; None also for an error of scoring."""
    if isinstance(line.record, InputError):
        return None if text == output_line(line, line.record) else f"the input has {line.record.code} there"
    if (type(answer.id), answer.id) != (type(line.id), line.id):
        return f"`id` was {_shown(answer.id)}, now {_shown(line.id)}"
    if isinstance(answer, ErrorLine):
        return "the line has been mended" if answer.error.code in _UNREADABLE else None
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


def _mismatch(claim: Claim, at: int, line: ParsedLine, fault: str) -> ResumeMismatch:
    return resume_mismatch(claim.path, not_the_answer(at, line, fault))


def not_the_answer(at: int, line: ParsedLine, fault: str) -> str:
    """Say that line `at` of an output is not the answer to an input line."""
    return f"its line {at} does not answer line {line.number} of the input: {fault}"


def _spelled(fields: Mapping[str, msgspec.Raw], name: str) -> str:
    return bytes(fields[name]).decode(errors="replace") if name in fields else "not there"


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()[:SHOWN_CHARS]

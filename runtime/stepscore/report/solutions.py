"""Scored records -> one self-contained page. Pure: text in, text out.

The page is three files of this package (page/report.html, .css, .js) with the records as JSON inside. It
needs no network and may have none: its policy lets it run this script and this style, by their hashes, and
load nothing at all. Text of a record is JSON in an inert block, with `<` spelled `\\u003c`, and is set by the
script as text; so nothing in it can become markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from stepscore.errors import InputError, InvalidJson, InvalidRecord, NotScored
from stepscore.jobs.jsonl import OUTPUT_NAMES, parse_line
from stepscore.prompt.template import SEPARATOR
from stepscore.records import PROBLEM_NAMES, record_from

MAX_FIELD_CHARS = 200


class Fault(msgspec.Struct, frozen=True):
    """Why a record has no rewards."""

    code: str
    message: str


class Tokens(msgspec.Struct, frozen=True):
    """L tokens: their texts, the L - 1 log-ratios and policy log-probs of all but the first (nats).

    Step k's reward adds up the tokens before index `ends[k]` that no step before it has; `response_start` is
    the first token of the answer.
    """

    texts: list[str]
    log_ratios: list[float]
    policy_logprobs: list[float]
    ends: list[int]
    response_start: int


class ReportRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record as the page shows it; one with a fault has nothing else but its id."""

    id: str | int
    error: Fault | None = None
    problem: str = ""
    steps: tuple[str, ...] = ()
    step_rewards: list[float] = []
    cumulative_rewards: list[float] = []
    num_tokens: int = 0
    label: int | None = None
    correct: bool | None = None
    problem_id: str | int | None = None
    fields: dict[str, str | int | float | bool] = {}
    tokens: Tokens | None = None


class _Scored(msgspec.Struct):
    """What `score` adds to a line."""

    id: str | int
    step_rewards: list[float]
    cumulative_rewards: list[float]
    num_tokens: int = 0
    step_ends: list[int] = []
    token_texts: list[str] | None = None
    policy_logprobs: list[float] | None = None
    reference_logprobs: list[float] | None = None


class _Failed(msgspec.Struct):
    id: str | int
    error: Fault


def solutions(lines: Iterable[bytes]) -> list[ReportRecord]:
    """Read what `stepscore score` wrote; a line that it did not write becomes a record with that fault.

    Raises NotScored where no record has rewards: such a file was not scored.
    """
    found = [_read(line, index) for index, line in enumerate(lines) if line.strip()]
    if not any(each.step_rewards for each in found):
        first = next((f": {each.error.message}" for each in found if each.error), "")
        hint = "a report is made of what `stepscore score` writes, not of its input"
        raise NotScored(f"no record has rewards{first}", hint=hint)
    return found


def _read(line: bytes, index: int) -> ReportRecord:
    try:
        return _solution(line)
    except InputError as error:
        return ReportRecord(parse_line(line, index).id, Fault(error.code, error.message))


def _solution(line: bytes) -> ReportRecord:
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise InvalidJson(f"not a JSON object: {str(error)[:200]}") from None
    if "error" in fields and "step_rewards" not in fields:
        failed = _converted(fields, _Failed)
        return ReportRecord(failed.id, failed.error)
    scored = _converted(fields, _Scored)
    record = record_from(fields)
    if not record.steps or not len(record.steps) == len(scored.step_rewards) == len(
        scored.cumulative_rewards
    ):
        raise InvalidRecord(
            f"{len(record.steps)} steps, {len(scored.step_rewards)} step_rewards, "
            f"{len(scored.cumulative_rewards)} cumulative_rewards: there must be as many of each"
        )
    return ReportRecord(
        id=scored.id,
        problem=record.problem,
        steps=record.steps,
        step_rewards=scored.step_rewards,
        cumulative_rewards=scored.cumulative_rewards,
        num_tokens=scored.num_tokens,
        label=_label(fields.get("label")),
        correct=correct if isinstance(correct := fields.get("final_answer_correct"), bool) else None,
        problem_id=given if isinstance(given := fields.get("problem_id"), str | int) else None,
        fields=_shown(fields),
        tokens=_tokens(scored, record.steps),
    )


def _converted(fields: Mapping[str, Any], to: Any) -> Any:
    try:
        return msgspec.convert(fields, to)
    except msgspec.ValidationError as error:
        raise InvalidRecord(f"no scored record: {str(error)[:200]}") from None


def _label(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_TAKEN = {*PROBLEM_NAMES, "steps", "completions", *OUTPUT_NAMES, "label", "final_answer_correct"}


def _shown(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the short other fields, which passed through the scoring."""
    short = {
        name: value
        for name, value in fields.items()
        if name not in _TAKEN and isinstance(value, str | int | float)
    }
    return {name: value for name, value in short.items() if len(str(value)) <= MAX_FIELD_CHARS}


def _tokens(scored: _Scored, steps: Sequence[str]) -> Tokens | None:
    texts, policy, reference = scored.token_texts, scored.policy_logprobs, scored.reference_logprobs
    if texts is None or policy is None or reference is None:
        return None
    if not len(texts) == len(policy) + 1 == len(reference) + 1 or len(scored.step_ends) != len(steps):
        raise InvalidRecord(
            "token_texts, policy_logprobs, reference_logprobs and step_ends do not fit together"
        )
    ends = [end + 2 for end in scored.step_ends]  # log-prob j scores token j + 1
    ratios = [round(ours - theirs, 6) for ours, theirs in zip(policy, reference, strict=True)]
    return Tokens(
        texts, ratios, [round(value, 6) for value in policy], ends, _response_start(texts, steps, ends)
    )


def _response_start(texts: Sequence[str], steps: Sequence[str], ends: Sequence[int]) -> int:
    """Return the first token of the answer, by its text; 0 where another spelling (NFC) hides it.

    >>> _response_start(["<user>", "1+1?", "<assistant>", "2", ".", "<end>"], ["2."], [6])
    3
    """
    before, _, after = "".join(texts).rpartition(SEPARATOR.join(steps))
    if not after:
        return 0
    position = 0
    for index, text in enumerate(texts):
        if position >= len(before):
            return min(index, ends[0])
        position += len(text)
    return 0

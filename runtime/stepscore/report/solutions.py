"""Read scored lines into the records that the report shows. Pure: text in, structs out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from stepscore.errors import InputError, InvalidRecord, NotScored
from stepscore.jobs.jsonl import parse_line
from stepscore.jobs.schema import OUTPUT_NAMES, ErrorLine, LineError, ScoredLine, decode_line
from stepscore.records import PROBLEM_NAMES, of_texts, record_of_output
from stepscore.report.formulas import Formulas
from stepscore.report.markup import spans

MAX_FIELD_CHARS = 200


class Tokens(msgspec.Struct, frozen=True):
    """L tokens: their texts, the L - 1 log-ratios and policy log-probs of all but the first (nats).

    Step k's reward sums the tokens from the previous step's end up to index `ends[k]`, exclusive;
    `response_start` is the index of the first response token.
    """

    texts: list[str]
    log_ratios: list[float]
    policy_logprobs: list[float]
    ends: list[int]
    response_start: int


class ReportRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of the page; a record with an error has only its id and the error.

    `spans` are those of the problem and of each step (`report.markup`), empty where no text has any.
    """

    id: str | int
    error: LineError | None = None
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
    spans: list[list[int]] = []


def solutions(lines: Iterable[bytes], formulas: Formulas) -> list[ReportRecord]:
    """Read the output of `stepscore score`; an invalid line becomes a record with its error.

    Formulas of the texts are added to `formulas`. Raises NotScored where no record has rewards and texts.
    """
    found = [_read(line, index, formulas) for index, line in enumerate(lines) if line.strip()]
    if not any(each.step_rewards for each in found):
        first = next((f": {each.error.message}" for each in found if each.error), "")
        raise NotScored(
            f"no record has rewards and texts{first}",
            hint="give the output of `stepscore score` for texts, not its input",
        )
    return found


def _read(text: bytes, index: int, formulas: Formulas) -> ReportRecord:
    try:
        line = decode_line(text)
        if isinstance(line, ErrorLine):
            return ReportRecord(line.id, line.error)
        return _solution(line, msgspec.json.decode(text), formulas)
    except InputError as error:
        failed = ErrorLine.of(parse_line(text, index).id, error)
        return ReportRecord(failed.id, failed.error)


def _solution(scored: ScoredLine, fields: Mapping[str, Any], formulas: Formulas) -> ReportRecord:
    record = of_texts(record_of_output(fields))
    if isinstance(record, InputError):
        raise record
    if not len(record.steps) == len(scored.step_rewards) == len(scored.cumulative_rewards):
        raise InvalidRecord(
            f"{len(record.steps)} steps, {len(scored.step_rewards)} step_rewards and "
            f"{len(scored.cumulative_rewards)} cumulative_rewards: their numbers must be equal"
        )
    found = [spans(text, formulas) for text in (record.problem, *record.steps)]
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
        spans=found if any(found) else [],
    )


def _label(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_HAVE_THEIR_PLACE = {*PROBLEM_NAMES, "steps", "completions", *OUTPUT_NAMES, "label", "final_answer_correct"}


def _shown(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the other fields that passed through scoring, as far as they are short."""
    short = {
        name: value
        for name, value in fields.items()
        if name not in _HAVE_THEIR_PLACE and isinstance(value, str | int | float)
    }
    return {name: value for name, value in short.items() if len(str(value)) <= MAX_FIELD_CHARS}


def _tokens(scored: ScoredLine, steps: Sequence[str]) -> Tokens | None:
    texts, policy, reference = scored.token_texts, scored.policy_logprobs, scored.reference_logprobs
    if texts is None or policy is None or reference is None:
        return None
    ends = [end + 2 for end in scored.step_ends]  # log-prob j is that of token j + 1
    if (
        not len(texts) == len(policy) + 1 == len(reference) + 1
        or len(ends) != len(steps)
        or max(scored.response_start, *ends) > len(texts)
    ):
        raise InvalidRecord(
            "token_texts, policy_logprobs, reference_logprobs, response_start and step_ends do not match"
        )
    ratios = [round(one - other, 6) for one, other in zip(policy, reference, strict=True)]
    return Tokens(texts, ratios, [round(value, 6) for value in policy], ends, scored.response_start)

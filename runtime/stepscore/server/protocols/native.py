"""The native route POST /v1/score: texts, messages or token ids; results and errors per item."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from stepscore.errors import InputError, InvalidRecord, StepscoreError
from stepscore.jobs.schema import MAX_ID_CHARS
from stepscore.records import BY_ACCEPTED_NAMES, MESSAGES, PROBLEM_NAMES, STEPS_NAMES, Record, TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.floats import base64_of, shortest
from stepscore.server.routes import Context, Outcome, Route

TIMEOUT = "seconds from the arrival of the call after which it is given up"


class Part(enum.StrEnum):
    """Part of a result."""

    OUTCOME = "outcome"
    """`outcome_reward`."""
    STEPS = "steps"
    """`cumulative_rewards`, `step_rewards` and `step_ends`."""
    TOKENS = "tokens"
    """`tokens`: log-probs of both models and rewards, one per token."""


class Encoding(enum.StrEnum):
    """Encoding of the values per token."""

    FLOAT = "float"
    """JSON numbers, the shortest decimals that read back as the same float32."""
    BASE64 = "base64"
    """Base64 of float32, little endian."""


def _item_schema() -> dict[str, Any]:
    texts, ids = (
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
    )
    turn = {"type": "object", "properties": {"role": {"type": "string"}, "content": {"type": "string"}}}
    names = {
        "id": {"type": ["string", "integer", "null"], "description": "returned with the result"},
        PROBLEM_NAMES[0]: {
            "type": "string",
            "description": f"text of the problem; other names: {', '.join(PROBLEM_NAMES[1:])}",
        },
        STEPS_NAMES[0]: texts
        | {"description": f"steps of the solution; other names: {', '.join(STEPS_NAMES[1:])}"},
        MESSAGES: {
            "type": "array",
            "items": turn,
            "description": "one user and one assistant message, which is split at blank lines",
        },
        "prompt_token_ids": ids | {"description": "scored as they are: nothing is added or tokenized"},
        "response_token_ids": ids,
        "step_ends": ids
        | {"description": "index into response_token_ids of the last token of each step; else by separator"},
    }
    return {"type": "object", "properties": names}


class ScoreBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Solutions to score: each item is texts, messages or token ids."""

    items: Annotated[list[Any], Meta(min_length=1, extra_json_schema={"items": _item_schema()})]
    parts: Annotated[tuple[Part, ...], Meta(description="parts of a result; default: outcome and steps")] = (
        msgspec.field(name="return", default=(Part.OUTCOME, Part.STEPS))
    )
    encoding: Encoding = Encoding.FLOAT
    timeout: Annotated[float, Meta(gt=0, description=TIMEOUT)] | None = None


class TokenValues(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values of consecutive tokens, float32: value j belongs to token `first_token` + j of the sequence.

    A list of numbers, or with the encoding `base64` its bytes. Of texts, all tokens but the first have
    values, and `token_ids` and `token_texts` are those of the whole sequence; of token ids, the response has.
    """

    first_token: int
    policy_logprobs: list[float] | str
    reference_logprobs: list[float] | str
    rewards: Annotated[list[float] | str, Meta(description="beta times the difference of the two log-probs")]
    token_ids: list[int] | None = None
    token_texts: list[str] | None = None


class ItemError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Reason why an item has no result."""

    type: Annotated[str, Meta(description="stable code of the error, such as `too_long`")]
    message: str
    hint: str | None = None


class ItemAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to one item: the parts that were asked for, or `error`."""

    index: Annotated[int, Meta(description="position of the item in the call")]
    id: str | int | None = None
    error: ItemError | None = None
    outcome_reward: float | None = None
    cumulative_rewards: list[float] | None = None
    step_rewards: list[float] | None = None
    step_ends: Annotated[
        list[int] | None, Meta(description="index into the values per token of the last one of each step")
    ] = None
    num_tokens: Annotated[int | None, Meta(description="tokens of prompt and response")] = None
    special_text: Annotated[
        bool, Meta(description="true if the texts spell a control token, which was encoded as text")
    ] = False
    tokens: TokenValues | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the items that have a result, prefixes counted as often as they occur."""

    tokens: int


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answers in the order of the items, and what the rewards depend on."""

    model: str
    fingerprint: str
    beta: float
    convention: str
    version: str
    date: Annotated[str, Meta(description="time of the answer, ISO 8601, UTC")]
    results: list[ItemAnswer]
    usage: Usage


def requests(body: ScoreBody, context: Context) -> list[Request | InputError]:
    """Return one request, or the error, of each item."""
    del context
    tokens = Part.TOKENS in body.parts
    return [_request(item, tokens=tokens) for item in body.items]


def _request(item: object, *, tokens: bool) -> Request | InputError:
    try:
        if not isinstance(item, dict):
            raise InvalidRecord("an item must be an object")
        _item_id(item)
        return Request(_record(item), tokens=tokens)
    except InputError as error:
        return error.untraced()


def _record(item: Mapping[str, Any]) -> Record | TokenRecord:
    record = BY_ACCEPTED_NAMES.record(item)
    if isinstance(record, Record) and item.get("step_ends") is not None:
        raise InvalidRecord("`step_ends` is given with texts: it is read with token ids only")
    return record


def _item_id(item: object) -> str | int | None:
    """Return the id of an item; raise InvalidRecord where it has one that cannot be returned."""
    value = item.get("id") if isinstance(item, dict) else None
    if value is None or (isinstance(value, str) and len(value) <= MAX_ID_CHARS):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise InvalidRecord(f"`id` must be a 64-bit integer or a string of at most {MAX_ID_CHARS} characters")


def answer(body: ScoreBody, outcomes: list[Outcome], context: Context) -> ScoreAnswer:
    """Return the answers to all items."""
    results = [
        _item_answer(body, index, item, outcome, context)
        for index, (item, outcome) in enumerate(zip(body.items, outcomes, strict=True))
    ]
    return ScoreAnswer(
        model=context.name,
        fingerprint=context.fingerprint,
        beta=context.beta,
        convention=context.convention.value,
        version=context.version,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        results=results,
        usage=Usage(sum(result.num_tokens or 0 for result in results)),
    )


def _item_answer(body: ScoreBody, index: int, item: Any, outcome: Outcome, context: Context) -> ItemAnswer:
    try:
        item_id = _item_id(item)
    except InputError:
        item_id = None
    if isinstance(outcome, StepscoreError):
        error = ItemError(outcome.code, outcome.message, outcome.hint)
        return ItemAnswer(index=index, id=item_id, error=error)
    steps = Part.STEPS in body.parts
    if isinstance(outcome, TokenResult):
        num_tokens, special = len(item["prompt_token_ids"]) + len(item["response_token_ids"]), False
    else:
        num_tokens, special = outcome.num_tokens, outcome.special_text
    return ItemAnswer(
        index=index,
        id=item_id,
        outcome_reward=outcome.outcome_reward if Part.OUTCOME in body.parts else None,
        cumulative_rewards=outcome.cumulative_rewards if steps else None,
        step_rewards=outcome.step_rewards if steps else None,
        step_ends=outcome.step_ends if steps else None,
        num_tokens=num_tokens,
        special_text=special,
        tokens=_token_values(body, item, outcome, context.beta) if Part.TOKENS in body.parts else None,
    )


def _token_values(body: ScoreBody, item: Any, result: Result | TokenResult, beta: float) -> TokenValues:
    policy, reference = result.policy_logprobs, result.reference_logprobs
    assert policy is not None  # the request asked for them
    assert reference is not None
    encode = base64_of if body.encoding is Encoding.BASE64 else shortest
    if isinstance(result, TokenResult):
        first, rewards, ids, texts = len(item["prompt_token_ids"]), result.token_rewards, None, None
    else:
        first, rewards = 1, _token_rewards(policy, reference, beta)
        ids = None if result.token_ids is None else result.token_ids.tolist()
        texts = result.token_texts
    return TokenValues(
        first_token=first,
        policy_logprobs=encode(policy),
        reference_logprobs=encode(reference),
        rewards=encode(rewards),
        token_ids=ids,
        token_texts=texts,
    )


def _token_rewards(
    policy: NDArray[np.float32], reference: NDArray[np.float32], beta: float
) -> NDArray[np.float32]:
    return (beta * (policy.astype(np.float64) - reference)).astype(np.float32)


SCORE = Route(
    "/v1/score",
    ScoreBody,
    requests,
    answer,
    item_errors=True,
    lists=("items",),
    summary="Score solutions given as texts, messages or token ids; errors are per item.",
)

"""The lines of a job: what `stepscore score` writes, as msgspec structs, and JSON Schema of every line.

This is the one definition of the output. `score` writes it; resume, select, evaluate and report read it.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from stepscore.errors import InvalidJson, InvalidRecord, StepscoreError
from stepscore.jobs.input_schema import input_schema
from stepscore.jobs.provenance import HeaderLine
from stepscore.records import TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.visible import one_line

MAX_ID_CHARS = 1000
MAX_MESSAGE_CHARS = 299

Id = str | int
Rewards = Annotated[list[float], Meta(min_length=1)]
T = TypeVar("T")


class LineError(msgspec.Struct, frozen=True):
    """Reason why a record has no rewards."""

    code: Annotated[str, Meta(description="stable code of the error, such as `too_long`")]
    message: Annotated[str, Meta(description="what was found and what was expected, one line")]


class ErrorLine(msgspec.Struct, frozen=True):
    """Answer to a line that cannot be scored."""

    id: Annotated[Id, Meta(description="id of the input line, else its 0-based index")]
    error: LineError

    @classmethod
    def of(cls, line_id: Id, error: StepscoreError) -> ErrorLine:
        """Return the line of an error, its message cut to MAX_MESSAGE_CHARS."""
        return cls(line_id, LineError(error.code, one_line(error.message, MAX_MESSAGE_CHARS)))


class ScoredLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Fields that scoring adds to a line of n steps and L tokens; all other input fields pass through.

    Log-prob j is that of token j + 1 of all L; in a line of token ids it is that of token j of the response,
    which has R tokens.
    """

    id: Annotated[Id, Meta(description="id of the input line, else its 0-based index")]
    cumulative_rewards: Annotated[
        Rewards,
        Meta(description="n rewards: beta times the sum of the log-ratios up to the end of each step"),
    ]
    step_rewards: Annotated[
        Rewards, Meta(description="n first differences of cumulative_rewards, the first one from 0")
    ]
    outcome_reward: Annotated[float, Meta(description="last cumulative reward")]
    num_tokens: Annotated[int, Meta(ge=2, description="L: tokens of prompt and response")]
    response_start: Annotated[
        int,
        Meta(
            ge=1,
            description="index of the first response token in the token ids: the number of tokens of the "
            "prompt (chat template with the problem, up to and including the opening of the assistant turn), "
            "encoded with nothing after it; log-prob response_start - 1 is the first that the conventions "
            "`response` and `exact` sum",
        ),
    ]
    step_ends: Annotated[
        list[int], Meta(description="n indices into the log-probs: the last one summed for each step")
    ]
    first_summed: Annotated[
        int | None,
        Meta(
            description="index of the first log-prob summed, so that step_ends[k] - first_summed + 1 are "
            "summed up to step k: 0 by the convention `card` and in a line of token ids, else "
            "response_start - 1; absent in lines of earlier versions",
        ),
    ] = None
    special_text: Annotated[
        bool, Meta(description="true if problem or steps spell a control token, which was encoded as text")
    ] = False
    token_ids: Annotated[list[int] | None, Meta(description="L token ids (with --tokens)")] = None
    token_texts: Annotated[
        list[str] | None, Meta(description="L texts: what each token adds (with --tokens)")
    ] = None
    policy_logprobs: Annotated[
        list[float] | None,
        Meta(description="L - 1 log-probs of the policy, nats; R in a line of token ids (with --tokens)"),
    ] = None
    reference_logprobs: Annotated[
        list[float] | None,
        Meta(description="L - 1 log-probs of the reference, nats; R in a line of token ids (with --tokens)"),
    ] = None
    token_rewards: Annotated[
        list[float] | None,
        Meta(
            description="R rewards: beta times policy_logprobs minus reference_logprobs (with --tokens, in a "
            "line of token ids)"
        ),
    ] = None

    @classmethod
    def of(cls, line_id: Id, result: Result) -> ScoredLine:
        """Return the line of a result."""
        return cls(
            id=line_id,
            cumulative_rewards=result.cumulative_rewards,
            step_rewards=result.step_rewards,
            outcome_reward=result.outcome_reward,
            num_tokens=result.num_tokens,
            response_start=result.response_start,
            step_ends=result.step_ends,
            first_summed=result.first_summed,
            special_text=result.special_text,
            token_ids=None if result.token_ids is None else result.token_ids.tolist(),
            token_texts=result.token_texts,
            policy_logprobs=_shortest(result.policy_logprobs),
            reference_logprobs=_shortest(result.reference_logprobs),
        )

    @classmethod
    def of_ids(cls, line_id: Id, record: TokenRecord, result: TokenResult, *, tokens: bool) -> ScoredLine:
        """Return the line of a result of token ids, with one value per token where `tokens` asks for them."""
        return cls(
            id=line_id,
            cumulative_rewards=result.cumulative_rewards,
            step_rewards=result.step_rewards,
            outcome_reward=result.outcome_reward,
            num_tokens=record.num_tokens,
            response_start=len(record.prompt_token_ids),
            step_ends=result.step_ends,
            first_summed=0,
            policy_logprobs=_shortest(result.policy_logprobs) if tokens else None,
            reference_logprobs=_shortest(result.reference_logprobs) if tokens else None,
            token_rewards=_shortest(result.token_rewards) if tokens else None,
        )


class RewardsLine(msgspec.Struct, frozen=True):
    """The rewards of a line and where they are summed, which is all that choosing and evaluating need."""

    cumulative_rewards: Rewards
    step_rewards: Rewards
    step_ends: list[int] | None = None
    first_summed: int | None = None
    response_start: int | None = None


OUTPUT_NAMES = (*ScoredLine.__struct_fields__, "error")
"""Names of the fields that scoring writes; an input field of the same name is replaced."""


class _Kind(msgspec.Struct):
    step_rewards: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_KIND, _SCORED, _REWARDS, _ERROR = (
    msgspec.json.Decoder(_Kind),
    msgspec.json.Decoder(ScoredLine),
    msgspec.json.Decoder(RewardsLine),
    msgspec.json.Decoder(ErrorLine),
)


def decode_line(text: bytes) -> ScoredLine | ErrorLine:
    """Decode one line of a job's output; raise InvalidJson, or InvalidRecord where the line is neither kind.

    >>> decode_line(b'{"id": 7, "error": {"code": "no_steps", "message": "`steps` is empty"}}').error.code
    'no_steps'
    """
    return _decode(text, _SCORED)


def decode_rewards(text: bytes) -> RewardsLine | ErrorLine:
    """Decode the rewards of a line, whatever else it holds; raise as `decode_line` does."""
    return _decode(text, _REWARDS)


def _decode(text: bytes, scored: msgspec.json.Decoder[T]) -> T | ErrorLine:
    try:
        kind = _KIND.decode(text)
        if kind.error is not msgspec.UNSET:
            return _ERROR.decode(text)
        if kind.step_rewards is msgspec.UNSET:
            raise InvalidRecord("`step_rewards` is missing: score the record first")
        return scored.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidRecord(
            f"not a line of `stepscore score`: {str(error)[:200]}",
            hint="score the record with this version of stepscore",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidJson(f"not JSON: {str(error)[:200]}") from None


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return JSON Schema (2020-12) of the lines: `header`, `input`, `scored` and `error`.

    >>> sorted(json_schemas())
    ['error', 'header', 'input', 'scored']
    """
    return {
        "input": input_schema(MAX_ID_CHARS),
        "header": msgspec.json.schema(HeaderLine),
        "scored": msgspec.json.schema(ScoredLine),
        "error": msgspec.json.schema(ErrorLine),
    }


def _shortest(logprobs: Any) -> list[float] | None:
    """Return float32 values as those float64 that print as the float32's shortest decimal."""
    return None if logprobs is None else [float(str(value)) for value in logprobs]

"""vLLM's routes for reward models: /pooling, one row a step or token, and /classify, one value a text.

Messages and texts are read by the pair's chat template. Steps end at the step mark `<extra_0>` of
Qwen2.5-Math-PRM, which is not scored, or at blank lines where there is none. A value is a cumulative reward:
of /classify the last one, which is the outcome reward. By default, and with `use_activation` true, it is
written as a probability, the sigmoid of the reward; with false as the reward, in units of beta times nats.
A row is [1 - p, p], or [0, reward], whose softmax is [1 - p, p].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np

from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.prompt.template import SEPARATOR
from stepscore.records import Record
from stepscore.results import Result, TokenResult
from stepscore.rewards import probability
from stepscore.scheduling.requests import Request
from stepscore.server.protocols import logprobs
from stepscore.server.protocols.logprobs import Prompt, envelope, prompt_ids, usage
from stepscore.server.protocols.solutions import (
    Message,
    check_model,
    check_turn,
    conversation,
    refuse,
    results,
    solution,
    split_render,
    without_end,
)
from stepscore.server.routes import Context, Outcome, Route

MARK = "<extra_0>"


class Pooling(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /pooling and /classify: `input` or `messages`."""

    model: str | None = None
    input: Prompt | None = None
    messages: list[Message] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    """The name of `use_activation` in older versions of vLLM, as `softmax`."""
    softmax: bool | None = None
    encoding_format: str = "float"
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None

    @property
    def activated(self) -> bool:
        """Return whether values are probabilities: by the first name that is given."""
        names = (self.use_activation, self.activation, self.softmax)
        return next((given for given in names if given is not None), True)


@dataclass(frozen=True, slots=True)
class Solution:
    """A record, and for each step mark the number of steps that end there or before; None without marks."""

    record: Record
    counts: list[int] | None = None

    def values(self, result: Result) -> list[float]:
        """Return the cumulative reward at each step, or at each mark: 0 before the first step."""
        if self.counts is None:
            return result.cumulative_rewards
        sums = [0.0, *result.cumulative_rewards]
        return [sums[count] for count in self.counts]


def marked(problem: str, response: str, context: Context, *, ended: bool | None) -> Solution:
    """Return the solution of a response whose steps end at marks, else at blank lines.

    An empty step adds a blank line and has the value of the step before it; at the end it says that the
    solution is a partial one, as do words after the last mark, which no mark asks for.
    """
    if MARK not in response:
        return Solution(solution(problem, response, context, ended=ended))
    check_turn("the response", response.replace(MARK, ""), context)
    *pieces, rest = response.split(MARK)
    steps, counts, blank = [], [], ""
    for piece in pieces:
        if piece.strip():
            steps.append(blank + piece)
        blank = "" if piece.strip() else blank + piece + SEPARATOR
        counts.append(len(steps))
    if not steps:
        raise NoSteps(f"no step stands before a {MARK}: nothing to score")
    partial = bool(blank or rest.strip()) or ended is False
    return Solution(Record(problem, tuple(steps), unfinished=partial), counts)


def _texts(body: Pooling, context: Context) -> list[Solution] | None:
    """Return the solutions of messages or texts, None for token ids."""
    refuse(
        {
            "dimensions": body.dimensions,
            "truncate_prompt_tokens": body.truncate_prompt_tokens,
            "add_generation_prompt": body.add_generation_prompt,
            "continue_final_message": body.continue_final_message,
            "chat_template": body.chat_template,
            "encoding_format": body.encoding_format != "float",
        },
        "whole solutions are scored, in the pair's own chat template, and values are JSON numbers",
    )
    check_model(body.model, context)
    if (body.input is None) == (body.messages is None):
        raise InvalidRecord("give `input` or `messages`, and not both")
    if body.messages is not None:
        problem, response = conversation(body.messages, context)
        return [marked(problem, response, context, ended=None)]
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    if not texts:
        raise InvalidRecord("`input` is empty")
    if not all(isinstance(text, str) for text in texts):
        return None
    return [_rendered(str(text), context) for text in texts]


def _rendered(text: str, context: Context) -> Solution:
    problem, rest = split_render(text, context)
    response, ended = without_end(rest, context)
    return marked(problem, response, context, ended=ended)


def _pooling_requests(body: Pooling, context: Context) -> list[Request | InputError]:
    solutions = _texts(body, context)
    if solutions is None:
        return [logprobs.request(ids) for ids in prompt_ids(body.input or [], context)]
    return [Request(each.record) for each in solutions]


def _pooling_answer(body: Pooling, outcomes: list[Outcome], context: Context) -> object:
    solutions = _texts(body, context)
    if solutions is None:
        found = [outcome for outcome in outcomes if isinstance(outcome, TokenResult)]
        series = [_token_values(outcome, context.beta) for outcome in found]
        num_tokens = sum(map(len, series))
    else:
        scored = results(outcomes)
        series = [each.values(result) for each, result in zip(solutions, scored, strict=True)]
        num_tokens = sum(result.num_tokens for result in scored)
    rows = [[_row(value, activated=body.activated) for value in values] for values in series]
    data = [{"index": index, "object": "pooling", "data": each} for index, each in enumerate(rows)]
    return envelope("list", "pool", body.model or context.name) | {"data": data, "usage": usage(num_tokens)}


def _classify_requests(body: Pooling, context: Context) -> list[Request | InputError]:
    solutions = _texts(body, context)
    if solutions is None:
        raise InvalidRecord(
            "token ids have no response that is known here",
            hint="send prompt_token_ids and response_token_ids to /v1/score, or ids to /pooling",
        )
    return [Request(each.record) for each in solutions]


def _classify_answer(body: Pooling, outcomes: list[Outcome], context: Context) -> object:
    scored = results(outcomes)
    rewards = [result.outcome_reward for result in scored]
    values = [probability(reward) if body.activated else reward for reward in rewards]
    data: list[dict[str, Any]] = [
        {"index": index, "label": None, "probs": [value], "num_classes": 1}
        for index, value in enumerate(values)
    ]
    num_tokens = sum(result.num_tokens for result in scored)
    return envelope("list", "classify", body.model or context.name) | {
        "data": data,
        "usage": usage(num_tokens),
    }


def _token_values(outcome: TokenResult, beta: float) -> list[float]:
    """Return the cumulative reward at each token, beta * sum(p - q) in float64; 0 at the first."""
    ratios = outcome.policy_logprobs.astype(np.float64) - outcome.reference_logprobs
    return [beta * total for total in accumulate(ratios.tolist(), initial=0.0)]


def _row(value: float, *, activated: bool) -> list[float]:
    return [probability(-value), probability(value)] if activated else [0.0, value]


POOLING = Route(
    path="/pooling",
    body=Pooling,
    requests=_pooling_requests,
    answer=_pooling_answer,
    lists=("input",),
    summary="vLLM's pooling: a row [1 - p, p] for each step of a text, or for each token of token ids.",
)
CLASSIFY = Route(
    path="/classify",
    body=Pooling,
    requests=_classify_requests,
    answer=_classify_answer,
    lists=("input",),
    summary="vLLM's classification: the outcome reward of a solution, or its sigmoid.",
)
ROUTES = (POOLING, CLASSIFY)

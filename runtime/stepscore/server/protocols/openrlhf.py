"""OpenRLHF's remote reward model: {query, prompts, labels} -> {rewards, scores, extra_logs}.

A query is the decoded text of prompt and response, control tokens included. The response is what follows
the prompt. A query that ends without the end of its turn was cut off: its last step is scored where the text
ends. `labels` are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from stepscore.errors import InputError, InvalidRecord
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.scores import Score
from stepscore.server.protocols.solutions import (
    problem_of,
    results,
    shown,
    solution,
    split_render,
    without_end,
)
from stepscore.server.routes import Context, Outcome, Route


class GetReward(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /get_reward; without `prompts` the queries are split by the pair's template."""

    query: list[str]
    prompts: list[str] | None = None
    labels: Any = None


def _requests(body: GetReward, context: Context) -> list[Request | InputError]:
    if not body.query:
        raise InvalidRecord("`query` is empty")
    prompts: Sequence[str | None] = body.prompts or [None] * len(body.query)
    if len(prompts) != len(body.query):
        raise InvalidRecord(f"there are {len(body.query)} queries, but {len(prompts)} prompts")
    return [_request(query, prompt, context) for query, prompt in zip(body.query, prompts, strict=True)]


def _request(query: str, prompt: str | None, context: Context) -> Request | InputError:
    try:
        if prompt is None:
            problem, rest = split_render(query, context)
        elif query.startswith(prompt):
            problem, rest = problem_of(prompt, context), query[len(prompt) :]
        else:
            return InvalidRecord(
                f"the query does not begin with its prompt: it is {shown(query)}, the prompt {shown(prompt)}",
                hint="send prompts whole, as they are in the query",
            )
        response, ended = without_end(rest, context)
        return Request(solution(problem, response, context, ended=ended))
    except InputError as error:
        return error.untraced()


def _answer(outcomes: list[Outcome], score: Score) -> object:
    scored = results(outcomes)
    rewards = [score.of(result) for result in scored]
    logs = {
        "outcome_reward": [result.outcome_reward for result in scored],
        "min_step_reward": [Score.STEP_MIN.of(result) for result in scored],
        "num_steps": [float(len(result.step_rewards)) for result in scored],
    }
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def _route(score: Score) -> Route[GetReward]:
    def answer(body: GetReward, outcomes: list[Outcome], context: Context) -> object:
        return _answer(outcomes, score)

    return Route(
        path="/get_reward" + score.suffix,
        body=GetReward,
        requests=_requests,
        answer=answer,
        lists=("query",),
        summary=f"OpenRLHF's remote reward model: the {score.summary} of each query.",
    )


ROUTES = tuple(_route(score) for score in Score)

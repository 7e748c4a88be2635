"""slime's remote reward model: {prompt, response, label} -> a JSON number.

The response says nothing of its end, so it is read as `RewardModel` reads an output: as a finished solution,
unless it ends in a blank line. `label` is not read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stepscore.errors import InputError
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.scores import Score
from stepscore.server.protocols.solutions import (
    Message,
    conversation,
    problem_of,
    results,
    solution,
    without_end,
)
from stepscore.server.routes import Context, Outcome, Route


class RemoteReward(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /remote_rm; a prompt of messages is all but the response."""

    prompt: str | list[Message]
    response: str
    label: Any = None


def _requests(body: RemoteReward, context: Context) -> list[Request | InputError]:
    if isinstance(body.prompt, str):
        problem = problem_of(body.prompt, context)
    else:
        problem, _ = conversation([*body.prompt, Message(role="assistant", content=body.response)], context)
    response, ended = without_end(body.response, context)
    return [Request(solution(problem, response, context, ended=True if ended else None))]


def _route(score: Score) -> Route[RemoteReward]:
    def answer(body: RemoteReward, outcomes: list[Outcome], context: Context) -> object:
        (result,) = results(outcomes)
        return score.of(result)

    return Route(
        path="/remote_rm" + score.suffix,
        body=RemoteReward,
        requests=_requests,
        answer=answer,
        summary=f"slime's remote reward model: the {score.summary} of one response.",
    )


ROUTES = tuple(_route(score) for score in Score)

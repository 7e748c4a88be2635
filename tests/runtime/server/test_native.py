"""POST /v1/score: what an item may be, and what its result holds, equal to `Scorer`'s."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from testing.served import CONTEXT, ITEM, RESULT, app_of, client_of
from testing.solutions import SOLUTIONS
from testing.watched import WatchedEngine

from stepscore.cli.serve import context_of
from stepscore.engine.base import Engine
from stepscore.errors import InvalidRecord, NoSteps
from stepscore.records import Record, TokenRecord
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Request
from stepscore.scorer import Scorer
from stepscore.server.body import decode
from stepscore.server.protocols.native import Part, ScoreBody, answer, requests

IDS = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5, 6], "step_ends": [0, 2]}
TEXTS: list[dict[str, Any]] = [{"problem": each.problem, "steps": list(each.steps)} for each in SOLUTIONS]
PARTS = ["outcome", "steps", "tokens"]


def read(*items: object, **fields: object) -> list[Request | InvalidRecord]:
    return requests(ScoreBody(items=list(items), **fields), CONTEXT)  # type: ignore[arg-type,return-value]


def served(pair: Path, engine: Engine, *bodies: dict[str, Any]) -> tuple[Scorer, list[httpx.Response]]:
    """Return a scorer as the served one, and the answers to bodies sent at the same time."""
    scorer = Scorer.load(pair, engine=WatchedEngine(engine))

    async def ask() -> list[httpx.Response]:
        async with AsyncScorer(scorer) as asynchronous:
            app = app_of(asynchronous, context=context_of(scorer, pair, ()))
            async with client_of(app) as client:
                return await asyncio.gather(*(client.post("/v1/score", json=body) for body in bodies))

    answers = asyncio.run(ask())
    return Scorer.load(pair, engine=WatchedEngine(engine), tokens=True), answers


def test_an_item_is_texts_by_any_accepted_name_messages_or_ids() -> None:
    conversation = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a\n\nb"}]
    found = read({"question": "p", "solution": ["a"]}, {"messages": conversation}, IDS)
    assert found == [
        Request(Record("p", ("a",))),
        Request(Record("p", ("a", "b"))),
        Request(TokenRecord((1, 2, 3), (4, 5, 6), (0, 2))),
    ]
    assert read(ITEM, parts=(Part.TOKENS,)) == [Request(Record("secret problem", ("secret step",)), True)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "an item must be an object"),
        ({"steps": ["a"]}, "`problem` is missing"),
        (ITEM | IDS, "`problem` and `prompt_token_ids` are both given"),
        (ITEM | {"step_ends": [1]}, "`step_ends` is given with texts"),
        ({"prompt_token_ids": [1]}, "`response_token_ids` must be a list of integers, not null"),
        (ITEM | {"id": 1.5}, "`id` must be a 64-bit integer or a string"),
        (ITEM | {"id": "x" * 1001}, "`id` must be a 64-bit integer or a string"),
    ],
)
def test_a_wrong_item_is_an_error_of_its_own(item: object, message: str) -> None:
    error, good = read(item, ITEM)
    assert isinstance(error, InvalidRecord)
    assert message in error.message
    assert isinstance(good, Request)


def test_an_item_of_token_ids_is_read_as_an_input_line_is() -> None:
    (request,) = read(IDS | {"problem": None, "answer": "12", "solution": "a gold one"})
    assert isinstance(request, Request)
    assert isinstance(request.item, TokenRecord)


def test_an_answer_holds_the_parts_asked_for_and_errors_in_their_places() -> None:
    body = ScoreBody(items=[ITEM | {"id": 7}, {"id": "b"}], parts=(Part.OUTCOME,))
    done = answer(body, [RESULT, NoSteps("none", hint="add some")], CONTEXT)
    first, second = done.results
    assert (first.id, first.index, first.outcome_reward, first.num_tokens) == (7, 0, 0.25, 7)
    assert (first.step_rewards, first.tokens, first.error) == (None, None, None)
    assert second.error is not None
    assert (second.id, second.error.type, second.error.hint) == ("b", "no_steps", "add some")
    assert (done.model, done.beta, done.version, done.usage.tokens) == ("tiny", 0.5, "1.2.3", 7)


def test_a_body_says_what_it_does_not_know() -> None:
    with pytest.raises(InvalidRecord, match="unknown field `retrun`"):
        decode(b'{"items": [{}], "retrun": []}', ScoreBody)
    with pytest.raises(InvalidRecord, match=r"at `\$.return\[0\]`"):
        decode(b'{"items": [{}], "return": ["all"]}', ScoreBody)
    with pytest.raises(InvalidRecord, match="length >= 1"):
        decode(b'{"items": []}', ScoreBody)


@pytest.fixture(scope="module")
def answers(tiny_pair: Path, tiny_engine: Engine) -> tuple[Scorer, list[dict[str, Any]]]:
    one = [{"items": [item], "return": PARTS} for item in TEXTS]
    bodies = [*one, {"items": [*TEXTS, IDS, {"problem": "p", "steps": []}], "return": PARTS}]
    bodies.append(bodies[-1] | {"encoding": "base64"})
    scorer, responses = served(tiny_pair, tiny_engine, *bodies)
    assert [response.status_code for response in responses] == [200] * len(bodies)
    return scorer, [response.json() for response in responses]


def test_rewards_equal_those_of_a_scorer_in_calls_of_one_and_of_many(
    answers: tuple[Scorer, list[dict[str, Any]]],
) -> None:
    scorer, bodies = answers
    expected = scorer.score(SOLUTIONS)
    alone = [body["results"][0] for body in bodies[: len(TEXTS)]]
    for results in (alone, bodies[-2]["results"]):
        for given, wanted in zip(results, expected, strict=False):
            assert given["step_rewards"] == pytest.approx(wanted.step_rewards, abs=1e-7)
            assert given["cumulative_rewards"] == pytest.approx(wanted.cumulative_rewards, abs=1e-7)
            assert given["outcome_reward"] == pytest.approx(wanted.outcome_reward, abs=1e-7)
            assert (given["step_ends"], given["num_tokens"]) == (wanted.step_ends, wanted.num_tokens)


def test_values_per_token_of_texts_sum_to_the_rewards(
    answers: tuple[Scorer, list[dict[str, Any]]],
) -> None:
    scorer, bodies = answers
    (wanted,) = scorer.score(SOLUTIONS[:1])
    assert wanted.token_ids is not None
    given = bodies[-2]["results"][0]
    tokens = given["tokens"]
    assert tokens["token_ids"] == wanted.token_ids.tolist()
    assert tokens["token_texts"] == wanted.token_texts
    assert tokens["policy_logprobs"] == pytest.approx(wanted.policy_logprobs, abs=1e-5)
    sums = np.cumsum(tokens["rewards"])[given["step_ends"]]  # convention card: from the first log-prob
    assert sums.tolist() == pytest.approx(given["cumulative_rewards"], abs=1e-7)
    assert (tokens["first_token"], len(tokens["rewards"])) == (1, given["num_tokens"] - 1)


def test_values_per_token_of_ids_are_those_of_the_response(
    answers: tuple[Scorer, list[dict[str, Any]]],
) -> None:
    scorer, bodies = answers
    (wanted,) = scorer.score_ids([IDS])
    given = bodies[-2]["results"][4]
    tokens = given["tokens"]
    assert tokens["first_token"] == 3
    assert tokens["reference_logprobs"] == pytest.approx(wanted.reference_logprobs, abs=1e-5)
    assert tokens["rewards"] == pytest.approx(wanted.token_rewards, abs=1e-7)
    assert np.cumsum(tokens["rewards"])[given["step_ends"]] == pytest.approx(
        given["cumulative_rewards"], abs=1e-7
    )
    assert (given["num_tokens"], given["step_ends"]) == (6, [0, 2])


def test_base64_holds_the_float32_that_the_decimals_name(
    answers: tuple[Scorer, list[dict[str, Any]]],
) -> None:
    _, bodies = answers
    for plain, packed in zip(bodies[-2]["results"], bodies[-1]["results"], strict=True):
        for name in ("policy_logprobs", "reference_logprobs", "rewards"):
            if "tokens" in plain:
                values = np.frombuffer(base64.b64decode(packed["tokens"][name]), "<f4")
                np.testing.assert_allclose(values, np.float32(plain["tokens"][name]), atol=1e-5)
    assert bodies[-1]["results"][5]["error"]["type"] == "no_steps"

"""One call: limits, deadlines, and which status the errors of a scorer have."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from testing.served import ITEM, RESULT, ScriptedScorer, app_of, call, client_of, score

from stepscore.errors import (
    DeadlineExceeded,
    InputError,
    InvalidRecord,
    NonFinite,
    Overloaded,
    RunFailed,
    ScorerClosed,
    TooLong,
)
from stepscore.records import Record
from stepscore.results import Result
from stepscore.scheduling.requests import Request
from stepscore.server.routes import Context, Outcome, Route
from stepscore.server.settings import OverloadStatus, Settings


class Texts(msgspec.Struct):
    """A body of a route that answers with one error for the whole call."""

    texts: list[str]


def _requests(body: Texts, context: Context) -> list[Request | InputError]:
    return [Request(Record("p", (text,))) if text else InvalidRecord("empty") for text in body.texts]


def _answer(body: Texts, outcomes: list[Outcome], context: Context) -> object:
    return [outcome.outcome_reward for outcome in outcomes if isinstance(outcome, Result)]


WHOLE = Route("/whole", Texts, _requests, _answer, summary="Answers as a whole.")


def whole(scorer: ScriptedScorer, *texts: str) -> Any:
    return call(app_of(scorer, routes=[WHOLE]), "POST", "/whole", json={"texts": list(texts)})


def raising(error: Exception) -> ScriptedScorer:
    async def fail(_: Sequence[Any]) -> list[Outcome]:
        raise error

    return ScriptedScorer(fail)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", retry_after=2.2), 503, "3"),
        (Overloaded("full", retry_after=0.01), 503, "1"),
        (ScorerClosed("draining"), 503, None),
        (ValueError("a bug that quotes a secret"), 500, None),
    ],
)
def test_an_error_of_the_whole_call_has_its_status(
    error: Exception, status: int, retry_after: str | None
) -> None:
    response = score(app_of(raising(error)), ITEM)
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in response.text


def test_overload_may_be_429() -> None:
    settings = Settings(overload_status=OverloadStatus.TOO_MANY_REQUESTS)
    response = score(app_of(raising(Overloaded("full", retry_after=5)), settings), ITEM)
    assert (response.status_code, response.headers["retry-after"]) == (429, "5")
    assert response.json() == {"error": {"type": "overloaded", "message": "full"}}


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeadlineExceeded("late"), 504), (RunFailed("broken"), 500), (ScorerClosed("end"), 503)],
)
def test_an_error_that_all_items_share_is_that_of_the_call(error: Any, status: int) -> None:
    assert score(app_of(ScriptedScorer(error)), ITEM, ITEM).status_code == status

    async def first_fails(requests: Sequence[Any]) -> list[Outcome]:
        return [error, *[RESULT] * (len(requests) - 1)]

    response = score(app_of(ScriptedScorer(first_fails)), ITEM, ITEM)
    assert response.status_code == 200
    failed, good = response.json()["results"]
    assert failed["error"]["type"] == error.code
    assert good["outcome_reward"] == 0.25


def test_errors_of_input_and_numbers_are_those_of_items_however_many() -> None:
    for error in (TooLong("long"), NonFinite("nan")):
        response = score(app_of(ScriptedScorer(error)), ITEM)
        assert (response.status_code, response.json()["results"][0]["error"]["type"]) == (200, error.code)


def test_a_route_without_errors_per_item_answers_with_the_first() -> None:
    scorer = ScriptedScorer()
    response = whole(scorer, "a", "", "")
    assert response.status_code == 400
    assert response.json()["error"] == {"type": "invalid_record", "message": "item 1: empty"}
    assert scorer.asked == []  # nothing is scored for an answer that is an error
    assert whole(scorer, "a", "b").json() == [0.25, 0.25]
    assert whole(ScriptedScorer(NonFinite("nan")), "a").status_code == 422
    assert whole(ScriptedScorer(TooLong("long")), "a").json()["error"]["message"] == "long"


def test_a_call_of_too_many_items_is_refused() -> None:
    scorer = ScriptedScorer()
    app = app_of(scorer, Settings(max_items=2))
    assert score(app, ITEM, ITEM).status_code == 200
    response = score(app, ITEM, ITEM, ITEM)
    assert (response.status_code, len(scorer.asked)) == (413, 1)
    assert "3 items, more than 2" in response.json()["error"]["message"]


def test_the_deadline_is_that_of_the_body_else_of_the_header_else_the_default() -> None:
    scorer = ScriptedScorer()
    app = app_of(scorer, Settings(timeout=300))
    header = {"x-request-timeout": "200"}
    score(app, ITEM, headers=header, timeout=100)
    score(app, ITEM, headers=header)
    score(app, ITEM)
    rounded = [100 * round(seconds / 100) for seconds in scorer.timeouts if seconds is not None]
    assert rounded == [100, 200, 300]
    assert all(seconds < limit for seconds, limit in zip(scorer.timeouts, rounded, strict=True))
    score(app_of(scorer), ITEM)
    assert scorer.timeouts[-1] is None


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf"])
def test_a_deadline_that_is_no_time_is_refused(text: str) -> None:
    response = score(app_of(ScriptedScorer()), ITEM, headers={"x-request-timeout": text})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_record")


def test_a_deadline_that_passed_before_scoring_is_a_504() -> None:
    scorer = ScriptedScorer()
    response = score(app_of(scorer), ITEM, timeout=1e-9)
    assert (response.status_code, scorer.asked) == (504, [])


def test_a_client_that_leaves_cancels_its_requests(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> list[str]:
        waiting = asyncio.Event()

        async def forever(_: Sequence[Any]) -> list[Outcome]:
            waiting.set()
            await asyncio.Event().wait()
            return []

        scorer = ScriptedScorer(forever)
        messages = [{"type": "http.request", "body": b'{"items": [{}]}', "more_body": False}]
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await waiting.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "root_path": ""}
        await app_of(scorer)(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
        assert scorer.cancelled == 1
        return sent

    with caplog.at_level("INFO", "stepscore.server"):
        assert asyncio.run(leave()) == []
    (record,) = caplog.records
    assert record.fields["status"] == 499  # type: ignore[attr-defined]


def test_a_draining_server_refuses_new_calls_and_closes_connections() -> None:
    scorer = ScriptedScorer()
    app = app_of(scorer, is_draining=lambda: True)
    response = score(app, ITEM)
    assert (response.status_code, response.headers["connection"]) == (503, "close")
    assert scorer.asked == []
    assert call(app, "GET", "/ready").status_code == 503
    assert call(app, "GET", "/health").status_code == 200


def test_a_large_body_is_answered_as_a_small_one() -> None:
    app = app_of(ScriptedScorer())
    items = [ITEM | {"id": number, "note": "x" * 1000} for number in range(100)]
    results = score(app, *items).json()["results"]
    assert [result["id"] for result in results] == list(range(100))


def test_calls_at_the_same_time_have_their_own_answers() -> None:
    async def ask() -> list[Any]:
        async with client_of(app_of(ScriptedScorer())) as client:
            bodies = [{"items": [ITEM | {"id": number}]} for number in range(20)]
            answers = await asyncio.gather(*(client.post("/v1/score", json=body) for body in bodies))
            return [answer.json()["results"][0]["id"] for answer in answers]

    assert asyncio.run(ask()) == list(range(20))

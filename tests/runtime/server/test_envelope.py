"""Around every call: request ids, keys, headers, error bodies, and logs without any text of a request."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from testing.served import COMPUTED_TOKENS, ITEM, ScriptedScorer, app_of, call, score

from stepscore.errors import RunFailed, TooLong
from stepscore.server.app import INFORMATION
from stepscore.server.envelope import PUBLIC_PATHS
from stepscore.server.keys import load_keys
from stepscore.server.logs import JsonFormatter
from stepscore.server.settings import Settings
from stepscore.server.table import ROUTES


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server logs, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("stepscore.server")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in log.getvalue().splitlines()]


def test_a_request_id_goes_in_and_out(log: io.StringIO) -> None:
    response = score(app_of(ScriptedScorer()), ITEM, headers={"x-request-id": "job-7/3"})
    assert response.headers["x-request-id"] == "job-7/3"
    assert lines(log)[0]["request_id"] == "job-7/3"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "caf\xe9"])
def test_a_request_id_that_is_not_short_and_printable_is_replaced(given: str) -> None:
    app = app_of(ScriptedScorer())
    response = call(app, "GET", "/health", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


def test_a_call_is_one_line_with_its_size_and_time(log: io.StringIO) -> None:
    response = score(app_of(ScriptedScorer()), ITEM, ITEM, 5)
    (line,) = lines(log)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("milliseconds") >= 0
    assert line == {
        "level": "info",
        "event": "call",
        "request_id": response.headers["x-request-id"],
        "method": "POST",
        "route": "/v1/score",
        "status": 200,
        "items": 3,
        "tokens": 14,
        "computed_tokens": COMPUTED_TOKENS,
        "queue_milliseconds": 250.0,
    }
    assert response.headers["x-input-tokens"] == "14"
    assert response.headers["x-compute-tokens"] == str(COMPUTED_TOKENS)
    assert response.headers["x-queue-time"] == "250"
    assert int(response.headers["x-total-time"]) >= 0


def test_no_text_of_a_request_is_logged_whatever_goes_wrong(log: io.StringIO) -> None:
    async def bug(_: Any) -> Any:
        raise ValueError("cannot score: secret problem")

    for scorer in (ScriptedScorer(), ScriptedScorer(bug), ScriptedScorer(TooLong("secret step"))):
        app = app_of(scorer)
        score(app, ITEM, headers={"authorization": "Bearer secret"})
        score(app, ITEM, {"secret": 1}, retrun="secret")
        call(app, "POST", "/v1/score", content=b"secret", headers={"content-type": "application/json"})
        call(app, "GET", "/secret?secret=1")
    assert "secret" not in log.getvalue()
    failed = [line for line in lines(log) if line["event"] == "failed"]
    assert [(line["level"], line["error"]) for line in failed] == [("error", "ValueError")]
    assert "test_envelope.py" in failed[0]["place"]


def test_an_unexpected_error_is_a_500_without_its_words(log: io.StringIO) -> None:
    async def bug(_: Any) -> Any:
        raise KeyError("internals")

    response = score(app_of(ScriptedScorer(bug)), ITEM)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["message"]) == (500, "internal", "internal error")
    assert response.headers["x-request-id"] in error["hint"]


def test_why_the_engine_failed_is_logged(log: io.StringIO) -> None:
    score(app_of(ScriptedScorer(RunFailed("ONNX Runtime failed: out of memory"))), ITEM)
    assert lines(log)[0]["message"] == "ONNX Runtime failed: out of memory"


def test_probes_are_logged_only_where_they_fail(log: io.StringIO) -> None:
    for path in ("/health", "/ready", "/metrics"):
        call(app_of(ScriptedScorer()), "GET", path)
    assert lines(log) == []
    call(app_of(ScriptedScorer(), is_draining=lambda: True), "GET", "/ready")
    assert [line["status"] for line in lines(log)] == [503]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/score", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_routed_is_an_error_in_the_same_form(
    method: str, path: str, status: int, kind: str
) -> None:
    response = call(app_of(ScriptedScorer()), method, path)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert "message" in response.json()["error"]


# Keys


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("STEPSCORE_API_KEY", "first\nsecond\n")
    return Settings(keys=load_keys(None))


PATHS = [*(("GET", each.path) for each in INFORMATION), *(("POST", route.path) for route in ROUTES)]


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/nowhere")])
def test_every_route_but_health_and_docs_needs_a_key(guarded: Settings, method: str, path: str) -> None:
    scorer = ScriptedScorer()
    app = app_of(scorer, guarded)
    response = call(app, method, path)
    if path in PUBLIC_PATHS:
        assert response.status_code == 200
        return
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})
    assert response.headers["www-authenticate"] == "Bearer"
    assert scorer.asked == []
    with_key = call(app, method, path, headers={"authorization": "Bearer second"})
    assert with_key.status_code != 401


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer firs", "Bearer first second", "Basic first", "first"]
)
def test_another_key_or_scheme_is_refused(guarded: Settings, given: str) -> None:
    response = score(app_of(ScriptedScorer(), guarded), ITEM, headers={"authorization": given})
    assert response.status_code == 401


def test_two_headers_of_keys_are_refused(guarded: Settings) -> None:
    given = [("authorization", "Bearer first"), ("authorization", "Bearer first")]
    assert call(app_of(ScriptedScorer(), guarded), "GET", "/version", headers=given).status_code == 401


@pytest.mark.parametrize("given", ["Bearer first", "bearer second", "BEARER  first"])
def test_each_key_opens_and_the_scheme_has_no_case(guarded: Settings, given: str) -> None:
    response = score(app_of(ScriptedScorer(), guarded), ITEM, headers={"authorization": given})
    assert response.status_code == 200

"""The compatible routes behind the app: the same answers over HTTP, statuses, and the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from testing.protocol_calls import ProtocolCalls

from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.server.app import build_app
from stepscore.server.metrics import Metrics
from stepscore.server.settings import Settings

VARYING = ("id", "created")
CHAT = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "One.\n\nTwo."}]
SCORED: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 1, "echo": True, "logprobs": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/pooling": {"messages": CHAT},
    "/classify": {"messages": CHAT, "use_activation": False},
    "/reference/generate": {
        "input_ids": [5, 6, 7],
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    },
    "/v1/completions": SCORED | {"model": "policy"},
    "/v1/chat/completions": {
        "model": "reference",
        "messages": CHAT,
        "prompt_logprobs": 0,
        "max_tokens": 0,
        "add_generation_prompt": False,
    },
    "/get_reward": {"query": ["1 + 1?One."], "prompts": ["1 + 1?"]},
    "/remote_rm/step-min": {"prompt": "1 + 1?", "response": "One.\n\nTwo.", "label": None},
}


class _Scorer(AsyncScorer):
    """An AsyncScorer over a scheduler that is there already."""

    def __init__(self, call: ProtocolCalls) -> None:
        self.scheduler = call.scheduler


@pytest.fixture
def post(call: ProtocolCalls) -> Any:
    app = build_app(
        _Scorer(call), call.context, Settings(max_items=2), Metrics(call.context), is_draining=lambda: False
    )

    def answer(path: str, body: object = None) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://server"
            ) as client:
                return await (client.get(path) if body is None else client.post(path, json=body))

        return asyncio.run(once())

    return answer


def steady(answer: Any) -> Any:
    """An answer without what differs from call to call."""
    if isinstance(answer, list):
        return [steady(each) for each in answer]
    if isinstance(answer, Mapping):
        return {key: steady(value) for key, value in answer.items() if key not in VARYING}
    return pytest.approx(answer, abs=1e-5) if isinstance(answer, float) else answer


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_over_http_is_that_of_the_protocol(call: ProtocolCalls, post: Any, path: str) -> None:
    response = post(path, BODIES[path])
    assert response.status_code == 200, response.text
    assert steady(response.json()) == steady(call(path, BODIES[path]))


@pytest.mark.parametrize(
    ("path", "changed", "status", "kind"),
    [
        ("/v1/completions", {"max_tokens": 5}, 400, "invalid_record"),
        ("/v1/completions", {"model": "gpt"}, 404, "unknown_model"),
        ("/v1/completions", {"prompt": [[5, 6]] * 3}, 413, "too_large"),
        ("/v1/completions", {"prompt": [5] * 600}, 400, "too_long"),
        ("/get_reward", {"query": ["1 + 1?One.", "b"], "prompts": ["1 + 1?", "a"]}, 400, "invalid_record"),
    ],
)
def test_one_error_answers_the_whole_call(
    post: Any, path: str, changed: dict[str, Any], status: int, kind: str
) -> None:
    response = post(path, BODIES[path] | changed)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("/v1/score", {"items": [{}, {}, {}]}),
        ("/pooling", {"messages": None, "input": ["no render"] * 3}),
        ("/classify", {"messages": None, "input": ["no render"] * 3}),
        ("/reference/generate", {"input_ids": None, "text": ["", "", ""]}),
        ("/reference/generate", {"input_ids": [[], [], []]}),
        ("/v1/completions", {"prompt": [[], [], []]}),
        ("/get_reward", {"query": ["", "", ""]}),
    ],
)
def test_too_many_items_are_refused_before_one_is_read(post: Any, path: str, changed: dict[str, Any]) -> None:
    response = post(path, BODIES.get(path, {}) | changed)
    assert response.status_code == 413, response.text
    assert "3 items, more than 2" in response.json()["error"]["message"]


def test_every_route_is_in_the_document_with_its_fields(call: ProtocolCalls, post: Any) -> None:
    document = post("/openapi.json").json()
    assert set(call.routes) <= set(document["paths"])
    assert {"query", "prompts"} <= set(document["components"]["schemas"]["GetReward"]["properties"])

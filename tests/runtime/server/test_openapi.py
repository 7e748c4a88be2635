"""The OpenAPI document says what the routes read and answer; its page loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from testing.served import ITEM, ScriptedScorer, app_of, call, score

from stepscore.server.app import INFORMATION
from stepscore.server.page import POLICY, render
from stepscore.server.table import ROUTES


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = call(app_of(ScriptedScorer()), "GET", "/openapi.json").json()
    return found


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for name, each in value.items() if name == "$ref")
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_route_is_in_the_document_and_answers(document: dict[str, Any]) -> None:
    methods = {path: set(each) for path, each in document["paths"].items()}
    assert methods == {each.path: {"get"} for each in INFORMATION} | {each.path: {"post"} for each in ROUTES}
    for each in INFORMATION:
        response = call(app_of(ScriptedScorer()), "GET", each.path)
        assert response.status_code == 200
        kind = response.headers.get("content-type", "").partition(";")[0]
        assert kind == (each.media_type or "")


def test_every_reference_is_in_the_document(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    found = set(references(document))
    assert found
    assert {each.removeprefix("#/components/schemas/") for each in found} <= set(schemas)


def test_fields_of_an_answer_are_those_of_its_schema(document: dict[str, Any]) -> None:
    answer = score(app_of(ScriptedScorer()), ITEM).json()
    schemas = document["components"]["schemas"]
    assert set(answer) == set(schemas["ScoreAnswer"]["properties"])
    assert set(answer["results"][0]) <= set(schemas["ItemAnswer"]["properties"])


def test_the_body_is_documented_by_its_names_on_the_wire(document: dict[str, Any]) -> None:
    body = document["components"]["schemas"]["ScoreBody"]
    assert set(body["properties"]) == {"items", "return", "encoding", "timeout"}
    item = body["properties"]["items"]["items"]["properties"]
    assert {"problem", "steps", "messages", "prompt_token_ids", "response_token_ids"} <= set(item)


def test_only_scoring_and_figures_ask_for_a_key(document: dict[str, Any]) -> None:
    free = {path for path, each in document["paths"].items() for get in each.values() if not get["security"]}
    assert free == {"/health", "/ready", "/docs", "/openapi.json"}


def test_the_page_names_every_route_and_loads_nothing(document: dict[str, Any]) -> None:
    response = call(app_of(ScriptedScorer()), "GET", "/docs")
    assert response.headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    for path in document["paths"]:
        assert f"{path}</code>" in response.text
    assert re.findall(r"<(script|link|img|iframe)|https?://", response.text) == []


def test_texts_of_a_document_become_no_markup() -> None:
    schemas = {"<b>": {"description": "<img src=x>"}}
    paths = {"/<i>": {"get": {"summary": "<script>"}}}
    page = render({"info": {"version": "<u>"}, "paths": paths, "components": {"schemas": schemas}})
    assert not re.search(r"<(b|img|i|script|u)\b", page)

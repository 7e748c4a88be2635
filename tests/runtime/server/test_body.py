"""Bodies: their size while they are read, their time, their type, and what is said of wrong ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from testing.served import ITEM, JSON, ScriptedScorer, app_of, call, client_of, score

from stepscore.errors import Overloaded
from stepscore.server.body import BodyReader
from stepscore.server.refusals import ClientGone, Refused
from stepscore.server.settings import MAX_BUFFERED_BODIES, Settings


def request(chunks: Iterable[bytes | None], **headers: str) -> tuple[Request, list[int]]:
    """Return a request whose body comes in chunks, None being a client that leaves, and what was read."""
    read: list[int] = []
    coming = iter(chunks)

    async def receive() -> dict[str, Any]:
        try:
            chunk = next(coming)
        except StopIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        if chunk is None:
            return {"type": "http.disconnect"}
        read.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": True}

    named = {"content_type": "application/json"} | headers
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "headers": pairs}, receive), read


def read(reader: BodyReader, *chunks: bytes | None, **headers: str) -> tuple[bytes | Exception, int]:
    """Return the body or what was raised, and how many bytes were read."""
    given, counts = request(chunks, **headers)
    try:
        return asyncio.run(reader.read(given)), sum(counts)
    except (Refused, ClientGone, Overloaded) as error:
        return error, sum(counts)


def test_a_body_of_the_largest_size_is_read_and_one_byte_more_is_refused() -> None:
    assert read(BodyReader(10), b"12345", b"67890") == (b"1234567890", 10)
    error, _ = read(BodyReader(10), b"12345", b"678901")
    assert isinstance(error, Refused)
    assert (error.status, error.kind, error.headers["connection"]) == (413, "too_large", "close")


def test_the_rest_of_a_large_body_is_read_so_that_its_client_reads_the_answer() -> None:
    assert read(BodyReader(10), *[b"12345"] * 8)[1] == 40
    assert read(BodyReader(10), *[b"12345"] * 8, content_length="40")[1] == 40
    assert read(BodyReader(10), *[b"12345"] * 1000)[1] < 120
    assert read(BodyReader(10), b"12345", content_length="5000")[1] == 0
    assert read(BodyReader(10), b"12345", content_length="11", expect="100-continue")[1] == 0


def test_a_client_that_leaves_while_it_sends_is_gone() -> None:
    assert isinstance(read(BodyReader(10), b"1", None)[0], ClientGone)
    assert isinstance(read(BodyReader(10), b"12345678901", None)[0], ClientGone)


def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async def wait() -> None:
        given, _ = request([])

        async def never() -> Any:
            await asyncio.Event().wait()

        given._receive = never
        await BodyReader(10, seconds=0.01).read(given)

    with pytest.raises(Refused) as refused:
        asyncio.run(wait())
    assert (refused.value.status, refused.value.headers["connection"]) == (408, "close")


def test_bodies_that_are_read_at_once_are_bounded_and_given_back() -> None:
    reader = BodyReader(1)

    async def flood() -> list[object]:
        async def slow() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.sleep(0.05)

        async def one() -> object:
            given, _ = request([])
            given.stream = slow  # type: ignore[method-assign]
            return await reader.read(given)

        many = (one() for _ in range(MAX_BUFFERED_BODIES + 3))
        return await asyncio.gather(*many, return_exceptions=True)

    outcomes = asyncio.run(flood())
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 3
    assert read(reader, b"1") == (b"1", 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_plain_json_is_refused_unread(headers: dict[str, str]) -> None:
    response = call(app_of(ScriptedScorer()), "POST", "/v1/score", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "kind", "place"),
    [
        (b"{", "invalid_json", "truncated"),
        (b'{"items": [1,]}', "invalid_json", "byte 13"),
        (b'{"items": [NaN]}', "invalid_json", "byte 11"),
        (b'{"items": ["\xff"]}', "invalid_json", "not JSON"),
        (b"[" * 5000, "invalid_json", "nested too deeply"),
        (b"[]", "invalid_record", "Expected `object`, got `array`"),
        (b"{}", "invalid_record", "missing required field `items`"),
        (b'{"items": 3}', "invalid_record", "at `$.items`"),
    ],
)
def test_a_wrong_body_is_a_400_that_says_what_and_where(body: bytes, kind: str, place: str) -> None:
    body = b'{"items": ' + body + b"}" if body.startswith(b"[[") else body
    response = call(app_of(ScriptedScorer()), "POST", "/v1/score", content=body, headers=JSON)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, kind)
    assert place in error["message"]


def test_charset_and_case_of_the_type_do_not_matter() -> None:
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert score(app_of(ScriptedScorer()), ITEM, headers=kind).status_code == 200


def test_a_body_in_chunks_is_counted_as_well() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    async def ask() -> httpx.Response:
        async with client_of(app_of(ScriptedScorer(), Settings(max_body_bytes=1000))) as client:
            return await client.post("/v1/score", content=chunks(), headers=JSON)

    assert asyncio.run(ask()).status_code == 413

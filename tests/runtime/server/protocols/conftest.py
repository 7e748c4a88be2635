"""All compatible routes in front of the tiny pair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.protocol_calls import ProtocolCalls

from stepscore.server.protocols import openai, openrlhf, sglang, slime, vllm


@pytest.fixture(scope="package")
def call(tiny_pair: Path) -> Iterator[ProtocolCalls]:
    routes = (*vllm.ROUTES, *sglang.ROUTES, *openai.ROUTES, *openrlhf.ROUTES, *slime.ROUTES)
    opened = ProtocolCalls(tiny_pair, routes)
    yield opened
    opened.close()

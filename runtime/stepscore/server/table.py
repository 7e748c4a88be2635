"""Table of all scoring routes."""

from __future__ import annotations

from typing import Any

from stepscore.server.protocols import native, openai, openrlhf, sglang, slime, vllm
from stepscore.server.routes import Route

ROUTES: tuple[Route[Any], ...] = (
    native.SCORE,
    *vllm.ROUTES,
    *sglang.ROUTES,
    *openai.ROUTES,
    *openrlhf.ROUTES,
    *slime.ROUTES,
)

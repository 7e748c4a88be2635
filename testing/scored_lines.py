"""Lines as `stepscore score` writes them, with made-up rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any


def scored(step_rewards: Sequence[float], **fields: Any) -> dict[str, Any]:
    """A record with these rewards; id and steps are made up where none are given."""
    cumulative = list(accumulate(step_rewards))
    return {
        "id": 0,
        "problem": "p",
        "steps": [f"step {index}" for index in range(len(step_rewards))],
        **fields,
        "cumulative_rewards": cumulative,
        "step_rewards": list(step_rewards),
        "outcome_reward": cumulative[-1],
        "num_tokens": 9,
        "response_start": 1,
        "step_ends": list(range(len(cumulative))),
        "first_summed": 0,
    }


def failed(record_id: str, code: str = "too_long") -> dict[str, Any]:
    return {"id": record_id, "error": {"code": code, "message": "why"}}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path

"""Outputs of a job in tests: their header, the lines behind it, and a clock that makes headers equal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stepscore.jobs import provenance
from stepscore.jobs.provenance import Provenance, read_header

THEN = "2026-12-01T09:30:00.000Z"


def stop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run begin at the same time: then equal runs write equal bytes."""
    monkeypatch.setattr(provenance, "utc_now", lambda: THEN)


def header_of(output: bytes | str) -> Provenance:
    """The provenance that an output begins with."""
    return read_header(_lines(output)[0])


def lines_of(output: bytes | str) -> list[bytes]:
    """The lines behind the header."""
    header, *lines = _lines(output)
    read_header(header)
    return lines


def answers(output: bytes | str) -> list[dict[str, Any]]:
    """The lines behind the header, decoded."""
    return [json.loads(line) for line in lines_of(output)]


def _lines(output: bytes | str) -> list[bytes]:
    return (output.encode() if isinstance(output, str) else output).splitlines(keepends=True)

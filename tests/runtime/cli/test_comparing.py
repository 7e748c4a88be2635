"""Progress of a comparison of answers."""

from __future__ import annotations

import io
import time

import pytest

from stepscore.cli import comparing
from stepscore.enums import Equality
from stepscore.selection.answers import Comparer


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, seconds: float) -> str:
    """Run a body until something is written, at most `seconds`."""
    with Comparer(Equality.EXACT) as comparer, comparing.shown(comparer, ["one"], 3, stream):
        end = time.monotonic() + seconds
        while not stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    return stream.getvalue()


def test_a_long_comparison_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "LOG_SECONDS", 0.02)
    assert written(io.StringIO(), 20).startswith("stepscore: 1 of 3 problems: 0 questions to math-verify")


def test_a_short_comparison_shows_nothing() -> None:
    assert written(io.StringIO(), 0) == ""


def test_a_terminal_keeps_no_trace_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "TERMINAL_SECONDS", 0.02)
    shown = written(Terminal(), 20)
    assert "1 of 3 problems" in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown

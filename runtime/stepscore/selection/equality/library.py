"""Ask math-verify in a separate process, within limits of time and memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from stepscore.errors import ExtraMissing

SECONDS = 5.0
LOST_SECONDS = 60.0
"""Processor time that answers which cannot be computed may cost in all."""
WALL_FACTOR = 30.0
"""Time after which a process that does not end itself is killed, as a multiple of its processor time."""
Value = tuple[str, str]


class Undecided(Exception):
    """Two answers cannot be compared: one is too large, or computing it took too long."""


class Library:
    """math-verify in a process that ends when a question takes longer than `seconds` of processor time.

    math-verify's own time limit uses SIGALRM, which neither works in threads nor interrupts C code; processor
    time does not depend on other load. An answer that cannot be computed is remembered; once such
    answers have cost `lost_seconds`, nothing new is asked.
    """

    def __init__(self, *, seconds: float = SECONDS, lost_seconds: float = LOST_SECONDS) -> None:
        self.asked = 0
        self._seconds = seconds
        self._left = lost_seconds
        self._values: dict[str, Value | None] = {}
        self._equal: dict[tuple[str, str], bool] = {}
        self._incomputable: set[str] = set()
        self._stuck: set[tuple[str, str]] = set()
        self._worker: subprocess.Popen[str] | None = None

    def value(self, text: str) -> Value | None:
        """Return the real and imaginary part of a number at 40 digits, None for anything else.

        Raises Undecided where it cannot be computed, ExtraMissing without math-verify.
        """
        if text in self._incomputable:
            raise Undecided
        if text not in self._values:
            try:
                reply = self._ask("value", text)
            except Undecided:
                self._incomputable.add(text)
                raise
            self._values[text] = None if reply is None else (reply[0], reply[1])
        return self._values[text]

    def equal(self, first: str, second: str) -> bool:
        """Return whether two texts that are not numbers are equal, in whatever order they are given."""
        pair = (first, second) if first <= second else (second, first)
        if pair in self._stuck:
            raise Undecided
        if pair not in self._equal:
            try:
                self._equal[pair] = bool(self._ask("equal", *pair))
            except Undecided:
                self._stuck.add(pair)
                raise
        return self._equal[pair]

    def close(self) -> None:
        """Kill the process, if it runs."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def _ask(self, *request: str) -> Any:
        if self._left <= 0:
            raise Undecided
        worker = self._worker = self._worker or _start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        self.asked += 1
        seconds = min(self._seconds, self._left)
        timer = threading.Timer(WALL_FACTOR * seconds, worker.kill)
        timer.start()
        try:
            worker.stdin.write(json.dumps([seconds, *request]) + "\n")
            worker.stdin.flush()
            reply = worker.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            timer.cancel()
        if not reply.endswith("\n"):
            self._left -= seconds
            self.close()
            raise Undecided
        return json.loads(reply)


def _start() -> subprocess.Popen[str]:
    if importlib.util.find_spec("math_verify") is None:
        raise _missing("math-verify is not installed")
    script = Path(__file__).with_name("math_verify_worker.py")
    worker = subprocess.Popen(
        [sys.executable, "-P", str(script)],  # -P: modules of the current folder are not imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert worker.stdout is not None
    greeting = worker.stdout.readline()
    if greeting != "ready\n":
        worker.communicate()
        raise _missing(f"math-verify cannot be imported: {greeting.strip()[:200]}")
    return worker


def _missing(fault: str) -> ExtraMissing:
    return ExtraMissing(
        f"cannot compare answers that differ as text: {fault}",
        hint="pip install 'stepscore[select]', or compare exact text with --equality exact",
    )

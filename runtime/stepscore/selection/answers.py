"""Equality of final answers: exact text, or mathematical equality by math-verify."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from stepscore.enums import Equality
from stepscore.errors import ExtraMissing

SECONDS = 5.0
_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)

Same = Callable[[str, str], bool]
"""Equality of a reference answer and a given one, in this order."""


def group_answers(answers: Sequence[str | None], same: Same) -> list[str | None]:
    """Replace every answer by the first answer that it is equal to.

    Only distinct strings are compared, each with the first of every earlier group: the equality of a library
    need not be transitive, so the order of the samples can matter.

    >>> group_answers(["8", "07", None, "7"], lambda a, b: int(a) == int(b))
    ['8', '07', None, '07']
    """
    firsts: list[str] = []
    group: dict[str, str] = {}
    for answer in answers:
        if answer is not None and answer not in group:
            group[answer] = next((first for first in firsts if same(first, answer)), answer)
            if group[answer] is answer:
                firsts.append(answer)
    return [None if answer is None else group[answer] for answer in answers]


class Comparer:
    """Compares answers and caches the results; `undecided` counts comparisons that timed out.

    Equal strings and integers are compared directly. For everything else `Equality.MATH` calls math-verify in
    a separate process that is killed after `seconds`: its built-in time limit uses SIGALRM, which neither
    works in threads nor interrupts C code. An undecided pair counts as different.
    """

    def __init__(self, equality: Equality, *, seconds: float = SECONDS) -> None:
        self.undecided = 0
        self._equality = equality
        self._seconds = seconds
        self._known: dict[tuple[str, str], bool] = {}
        self._worker: subprocess.Popen[str] | None = None

    def same(self, gold: str, given: str) -> bool:
        """Return whether two answers are equal; raise ExtraMissing if math-verify is needed and missing."""
        if gold == given or self._equality is Equality.EXACT:
            return gold == given
        if _WHOLE.fullmatch(gold) and _WHOLE.fullmatch(given):
            return _canonical(gold) == _canonical(given)
        if (gold, given) not in self._known:
            self._known[gold, given] = self._ask(gold, given)
        return self._known[gold, given]

    def close(self) -> None:
        """Kill the process, if it runs."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def __enter__(self) -> Comparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, gold: str, given: str) -> bool:
        worker = self._worker = self._worker or _start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        timer = threading.Timer(self._seconds, worker.kill)
        timer.start()
        try:
            worker.stdin.write(json.dumps([gold, given]) + "\n")
            worker.stdin.flush()
            reply = worker.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            timer.cancel()
        if not reply:
            self.undecided += 1
            self.close()
        return reply == "true\n"


def _canonical(number: str) -> tuple[bool, str]:
    """Return sign and digits of an integer, which may be longer than int() accepts."""
    digits = number.lstrip("+-").lstrip("0")
    return number.startswith("-") and digits != "", digits


def _start() -> subprocess.Popen[str]:
    if importlib.util.find_spec("math_verify") is None:
        raise _missing("math-verify is not installed")
    worker = subprocess.Popen(
        [sys.executable, "-m", "stepscore.selection.math_verify_worker"],
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

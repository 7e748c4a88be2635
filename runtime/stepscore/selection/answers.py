"""Final answers: where they stand in a solution, and which of them are the same."""

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
"""Whether a given answer (the second) is the first."""


def group_answers(answers: Sequence[str | None], same: Same) -> list[str | None]:
    """Replace every answer by the first seen one that it is the same as.

    Only distinct strings are compared, each with the first of every group before it: sameness as a library
    sees it need not be transitive, so the order of the samples can matter.

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
    """Compares answers, remembering what it was asked; `undecided` counts pairs that took too long.

    Equal strings and whole numbers need no library. For everything else `Equality.MATH` asks math-verify, in
    a process of its own that is ended after `seconds`: its own time limit is an alarm signal, which works
    neither in threads nor against a number too large to compute. An undecided pair counts as different.
    """

    def __init__(self, equality: Equality, *, seconds: float = SECONDS) -> None:
        self.undecided = 0
        self._equality = equality
        self._seconds = seconds
        self._known: dict[tuple[str, str], bool] = {}
        self._worker: subprocess.Popen[str] | None = None

    def same(self, gold: str, given: str) -> bool:
        """Whether `given` is the answer `gold`; raises ExtraMissing where that takes math-verify."""
        if gold == given or self._equality is Equality.EXACT:
            return gold == given
        if _WHOLE.fullmatch(gold) and _WHOLE.fullmatch(given):
            return _canonical(gold) == _canonical(given)
        if (gold, given) not in self._known:
            self._known[gold, given] = self._ask(gold, given)
        return self._known[gold, given]

    def close(self) -> None:
        """End the process, if there is one."""
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
    """Sign and digits of a whole number, which may have more of them than int() reads."""
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
        raise _missing(f"math-verify cannot be loaded: {greeting.strip()[:200]}")
    return worker


def _missing(fault: str) -> ExtraMissing:
    return ExtraMissing(
        f"answers that differ as text cannot be compared: {fault}",
        hint="pip install 'stepscore[select]', or compare characters with --equality exact",
    )

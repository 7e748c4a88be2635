"""Equality of final answers: exact text, or mathematical equality by own rules and math-verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import TracebackType

from stepscore.enums import Equality
from stepscore.selection.equality.compare import same
from stepscore.selection.equality.kinds import Answer
from stepscore.selection.equality.library import LOST_SECONDS, SECONDS, Library, Undecided
from stepscore.selection.equality.reading import read

Same = Callable[[str, str], bool]
"""Equality of two answers, in any order."""


def group_answers(answers: Sequence[str | None], same: Same) -> list[str | None]:
    """Replace every answer by the first one of its group; groups do not depend on the order of answers.

    Equality need not be transitive: "10" equals "10 m" and "10 km". Answers are grouped from the most
    frequent to the rarest, and join the first group of which they equal every member.

    >>> group_answers(["8", "07", None, "7"], lambda a, b: int(a) == int(b))
    ['8', '07', None, '07']
    """
    counts = Counter(answer for answer in answers if answer is not None)
    groups: list[list[str]] = []
    for answer in sorted(counts, key=lambda text: (-counts[text], len(text), text)):
        home = next((group for group in groups if all(same(one, answer) for one in group)), None)
        if home is None:
            groups.append([answer])
        else:
            home.append(answer)
    number = {member: index for index, members in enumerate(groups) for member in members}
    first: dict[int, str] = {}
    for given in answers:
        if given is not None:
            first.setdefault(number[given], given)
    return [None if given is None else first[number[given]] for given in answers]


class Comparer:
    """Compares answers; an undecided pair counts as different.

    Equality.MATH reads both by the rules of `equality/` and asks math-verify, in a separate process, only
    about what these do not decide.
    """

    def __init__(
        self, equality: Equality, *, seconds: float = SECONDS, lost_seconds: float = LOST_SECONDS
    ) -> None:
        self._equality = equality
        self._library = Library(seconds=seconds, lost_seconds=lost_seconds)
        self._read = lru_cache(maxsize=100_000)(read)
        self._undecided: set[tuple[str, str]] = set()

    @property
    def undecided(self) -> int:
        """Return the number of pairs that could not be compared."""
        return len(self._undecided)

    @property
    def asked(self) -> int:
        """Return the number of questions to math-verify."""
        return self._library.asked

    def same(self, one: str, other: str) -> bool:
        """Return whether two answers are equal; raise ExtraMissing if math-verify is needed and missing."""
        if one == other or self._equality is Equality.EXACT:
            return one == other
        try:
            return same(self._answer(one), self._answer(other), self._library)
        except Undecided:
            self._undecided.add((one, other) if one < other else (other, one))
            return False

    def close(self) -> None:
        """Stop math-verify, if it runs."""
        self._library.close()

    def __enter__(self) -> Comparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, text: str) -> Answer:
        return self._read(text)

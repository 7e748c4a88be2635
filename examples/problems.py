"""Step-by-step arithmetic word problems whose first wrong step is known.

A solution is a chain of equations over numbers from 1 to 99, one equation a step. A wrong solution has one
mistake; every step after it goes on correctly from the wrong value, so the final answer is wrong as well.

Everything here is a pure function of a seeded `random.Random`.

>>> sample = make_sample(random.Random(4), wrong=True)
>>> sample.steps[:2]
['Step 1, Monday: 24 * 4 = 96', 'Step 2, Thursday: 96 / 3 = 33']
>>> (sample.label, sample.final_answer, sample.final_answer_correct)
(1, '63', False)
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from stories import DAYS, Source, Story, make_story, small_number

SMALLEST, LARGEST = 1, 99
ATTEMPTS_PER_STORY = 20
MOST_STEPS = 7
STYLES = ("terse", "worded", "numbered")


@dataclass(frozen=True)
class Equation:
    """One step as written down, right or wrong."""

    day: str
    left: int
    operator: str
    right: int
    result: int
    clause: str


@dataclass(frozen=True)
class Sample:
    """A problem with one solution; `label` is the 0-based first wrong step, or -1."""

    problem: str
    steps: list[str]
    final_answer: str
    label: int
    style: str

    @property
    def final_answer_correct(self) -> bool:
        """A mistake always leads to a wrong answer."""
        return self.label == -1


def make_sample(rng: random.Random, wrong: bool) -> Sample:
    """A new story with a right or a wrong solution."""
    while True:
        story = make_story(rng)
        right = _solve(story)
        if right is None:
            continue
        if not wrong:
            return _write(rng, story, right, label=-1, style=rng.choice(STYLES))
        mistaken = _solve_wrongly(rng, story, right)
        if mistaken is not None:
            return _write(rng, story, *mistaken, style=rng.choice(STYLES))


def make_pair(rng: random.Random) -> tuple[Sample, Sample]:
    """A new story with a right and a wrong solution in the same style."""
    while True:
        story = make_story(rng)
        right = _solve(story)
        mistaken = None if right is None else _solve_wrongly(rng, story, right)
        if right is not None and mistaken is not None:
            style = rng.choice(STYLES)
            return _write(rng, story, right, -1, style), _write(rng, story, *mistaken, style)


def make_samples(rng: random.Random, wrong_share: float, exclude: Collection[str] = ()) -> Iterator[Sample]:
    """Endless samples, a share of them wrong, none with an excluded problem text."""
    while True:
        sample = make_sample(rng, wrong=rng.random() < wrong_share)
        if sample.problem not in exclude:
            yield sample


def make_pairs(rng: random.Random, exclude: Collection[str] = ()) -> Iterator[tuple[Sample, Sample]]:
    """Endless pairs of a right and a wrong solution, none with an excluded problem text."""
    while True:
        pair = make_pair(rng)
        if pair[0].problem not in exclude:
            yield pair


def make_drill(rng: random.Random, count: int) -> str:
    """Bare correct calculations written like terse steps, a blank line after each."""
    lines: list[str] = []
    while len(lines) < count:
        operator = rng.choices("+-*/", weights=(40, 40, 15, 5))[0]
        right = small_number(rng) if operator in "+-" else rng.randint(2, 9)
        left = rng.randint(2, 9 if operator == "*" and rng.random() < 0.7 else LARGEST)
        result = _apply(left, operator, right)
        if result is not None:
            lines.append(f"On {rng.choice(DAYS)}, {left} {operator} {right} = {result}.\n\n")
    return "".join(lines)


def _solve_wrongly(
    rng: random.Random, story: Story, right: list[Equation]
) -> tuple[list[Equation], int] | None:
    """Equations with one mistake that spoils the final answer, and where it is; None if none was found."""
    for _ in range(ATTEMPTS_PER_STORY):
        label = rng.randrange(len(story.calculations))
        solution = _solve(story, label, rng)
        if solution is not None and solution[-1].result != right[-1].result:
            return solution, label
    return None


def _solve(story: Story, wrong_at: int = -1, rng: random.Random | None = None) -> list[Equation] | None:
    """The equations, with one mistake at `wrong_at`; None if a number leaves the range or is not whole."""
    running, product = story.start, 0
    earlier, equations = [story.start], []
    for index, calculation in enumerate(story.calculations):
        operands = {Source.RUNNING: running, Source.PRODUCT: product}
        left = operands[calculation.left] if isinstance(calculation.left, Source) else calculation.left
        right = operands[calculation.right] if isinstance(calculation.right, Source) else calculation.right
        result = _apply(left, calculation.operator, right)
        if result is None:
            return None
        equation = Equation(calculation.day, left, calculation.operator, right, result, calculation.clause)
        if index == wrong_at and rng is not None:
            wrong = _make_mistake(rng, equation, earlier)
            if wrong is None:
                return None
            equation = wrong
        equations.append(equation)
        product = equation.result
        if calculation.updates_running:
            running = equation.result
        earlier.append(equation.result)
    return equations


def _make_mistake(rng: random.Random, right: Equation, earlier: list[int]) -> Equation | None:
    """The equation with a slip in its result, or done correctly with a wrong operator or operand."""
    kind = rng.choices(("slip", "operator", "operand", "stale"), weights=(40, 20, 20, 20))[0]
    left, operator, operand = right.left, right.operator, right.right
    if kind == "slip":
        slipped = right.result + rng.choice((-20, -10, -10, -3, -2, -1, 1, 2, 3, 10, 10, 20))
        if SMALLEST <= slipped <= LARGEST:
            return replace(right, result=slipped)
        return None
    if kind == "operator":
        operator = rng.choice([other for other in "+-*/" if other != operator])
    elif kind == "operand":
        operand += rng.choice((-10, -2, -1, 1, 2, 10))
    else:
        left = rng.choice(earlier)
    result = _apply(left, operator, operand)
    if result is None or result == right.result or operand < SMALLEST:
        return None
    return replace(right, left=left, operator=operator, right=operand, result=result)


def _apply(left: int, operator: str, right: int) -> int | None:
    """The whole result in range, or None."""
    if operator == "/":
        result = left // right if right and left % right == 0 else 0
    else:
        result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return result if SMALLEST <= result <= LARGEST else None


def _write(rng: random.Random, story: Story, equations: list[Equation], label: int, style: str) -> Sample:
    """Put the equations into words, the boxed answer in the last step.

    Every step opens with two tokens or more that tell nothing of right or wrong: the `card` convention counts
    up to two tokens of the next step to a step.
    """
    stop = "" if style == "numbered" else "."
    steps = []
    for number, equation in enumerate(equations, start=1):
        opening = {
            "terse": f"On {equation.day},",
            "worded": f"On {equation.day} {equation.clause.format(items=story.items)}:",
            "numbered": f"Step {number}, {equation.day}:",
        }[style]
        steps.append(
            f"{opening} {equation.left} {equation.operator} {equation.right} = {equation.result}{stop}"
        )
    answer = str(equations[-1].result)
    if len(steps) < MOST_STEPS and rng.random() < 0.5:
        steps.append(f"The answer is \\boxed{{{answer}}}{stop}")
    else:
        steps[-1] = f"{steps[-1].removesuffix(stop)}, so the answer is \\boxed{{{answer}}}{stop}"
    return Sample(story.problem, steps, answer, label, style)

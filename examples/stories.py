"""Short stories about one running quantity, and the calculations they ask for.

"Mia has 23 coins. On Monday, 9 coins are spent. On Friday, 4 hours of work bring 8 coins each. How many ..."
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Mia", "Tom", "Anna", "Ben", "Lily", "Sam", "Nora", "Max", "Eva", "Leo", "Ruth", "Carl")


class Source(Enum):
    """Source of an operand that is not a number of the story."""

    RUNNING = "the quantity after the last event"
    PRODUCT = "the result of the step before"


@dataclass(frozen=True)
class Calculation:
    """One step to be done: `left operator right`; its result becomes the running quantity if it says so."""

    day: str
    left: int | Source
    operator: str
    right: int | Source
    clause: str
    updates_running: bool = True


@dataclass(frozen=True)
class Story:
    """A problem's text, its unit, its starting quantity and the calculations it asks for."""

    problem: str
    items: str
    start: int
    calculations: list[Calculation]


@dataclass(frozen=True)
class Theme:
    """The sentences of one kind of story, with one or more phrasings of every event."""

    items: tuple[str, ...]
    start: tuple[str, ...]
    question: str
    add: tuple[str, ...]
    subtract: tuple[str, ...]
    multiply: tuple[str, ...]
    divide: tuple[str, ...]
    add_groups: tuple[str, ...]
    subtract_groups: tuple[str, ...]


THEMES = (
    Theme(
        items=("marbles", "cards", "shells", "stamps", "beads", "pens"),
        start=("{name} has {n} {items}.", "{name} starts with {n} {items}."),
        question="How many {items} does {name} have now?",
        add=("{n} more are found.", "{n} {items} come from {friend}.", "{n} are bought."),
        subtract=("{n} are lost.", "{n} {items} go to {friend}.", "{n} of them are sold."),
        multiply=("{n} times as many are there.",),
        divide=("{n} equal piles are made and one is kept.",),
        add_groups=("{n} bags with {m} {items} each are bought.", "{n} friends bring {m} {items} each."),
        subtract_groups=("{n} boxes with {m} {items} each are sold.",),
    ),
    Theme(
        items=("dollars", "coins"),
        start=("{name} has {n} {items}.", "{name} saved {n} {items}."),
        question="How many {items} are left?",
        add=("{n} {items} are earned.", "{n} more come from {friend}."),
        subtract=("{n} {items} are spent.", "{n} go to {friend}.", "{n} {items} are the price of a book."),
        multiply=("{n} times as much is there after a lucky game.",),
        divide=("{n} equal parts are made and one is kept.",),
        add_groups=("{n} hours of work bring {m} {items} each.",),
        subtract_groups=("{n} tickets for {m} {items} each are bought.",),
    ),
    Theme(
        items=("guests", "people"),
        start=("A hotel has {n} {items}.", "There are {n} {items} in a hotel."),
        question="How many {items} are in the hotel now?",
        add=("{n} more arrive.", "{n} {items} come with {name}."),
        subtract=("{n} of them leave.", "{n} {items} go with {name}."),
        multiply=("{n} times as many are there for a party.",),
        divide=("{n} equal groups are made and one stays.",),
        add_groups=("{n} groups of {m} arrive.",),
        subtract_groups=("{n} groups of {m} leave.",),
    ),
)


def make_story(rng: random.Random) -> Story:
    """A start, one event a day until there is enough to calculate, a question."""
    theme = rng.choice(THEMES)
    name, friend = rng.sample(NAMES, 2)
    items = rng.choice(theme.items)
    start = rng.randint(5, 60)
    sentences = [rng.choice(theme.start).format(name=name, items=items, n=start)]
    calculations: list[Calculation] = []
    enough = rng.randint(3, 5)
    days = iter(sorted(rng.sample(range(len(DAYS)), enough)))
    while len(calculations) < enough:
        day = DAYS[next(days)]
        phrasing, n, m, calculated = _make_event(rng, theme, day)
        event = phrasing.format(name=name, friend=friend, items=items, n=n, m=m)
        sentences.append(f"On {day}, {event}")
        calculations += calculated
    sentences.append(theme.question.format(name=name, items=items))
    return Story(" ".join(sentences), items, start, calculations)


def _make_event(rng: random.Random, theme: Theme, day: str) -> tuple[str, int, int, list[Calculation]]:
    """One event: its phrasing, its one or two numbers, its one or two calculations."""
    kind = rng.choices(("add", "subtract", "multiply", "divide", "groups"), weights=(30, 30, 8, 8, 24))[0]
    running = Source.RUNNING
    if kind == "add":
        n = small_number(rng)
        return rng.choice(theme.add), n, 0, [Calculation(day, running, "+", n, "more {items} come in")]
    if kind == "subtract":
        n = small_number(rng)
        return rng.choice(theme.subtract), n, 0, [Calculation(day, running, "-", n, "some {items} are gone")]
    if kind == "multiply":
        n = rng.randint(2, 5)
        return rng.choice(theme.multiply), n, 0, [Calculation(day, running, "*", n, "the number grows")]
    if kind == "divide":
        n = rng.randint(2, 5)
        return rng.choice(theme.divide), n, 0, [Calculation(day, running, "/", n, "one part stays")]
    n, m = rng.randint(2, 9), rng.randint(2, 9)
    product = Calculation(day, n, "*", m, "the groups together have", updates_running=False)
    if rng.random() < 0.5:
        last = Calculation(day, running, "+", Source.PRODUCT, "these {items} come in")
        return rng.choice(theme.add_groups), n, m, [product, last]
    last = Calculation(day, running, "-", Source.PRODUCT, "these {items} are gone")
    return rng.choice(theme.subtract_groups), n, m, [product, last]


def small_number(rng: random.Random) -> int:
    """What is added or taken away: one digit as often as two, so that a tiny model learns the units first."""
    return rng.randint(2, 9) if rng.random() < 0.5 else rng.randint(10, 40)

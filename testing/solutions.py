"""A few solutions to score, and short ways to do so."""

from __future__ import annotations

from pathlib import Path

from stepscore.records import Record
from stepscore.results import Result
from stepscore.scorer import Scorer

SOLUTIONS = [
    Record("1 + 1?", ("1 + 1 = 2.", "So 2.")),
    Record("A much longer problem, with 3 pens in each of 12 boxes.", ("12 * 3 = 36.",)),
    Record("x?", ("First.", "Then, at some length, the same once more.", "Last.", "Done.")),
    Record("2 + 2?", ("5",)),
]
SAMPLES = [
    Record(f"How many pens are in {problem} boxes of 12?", ("12 pens a box.", f"So {sample}."))
    for sample in range(3)
    for problem in range(2)
]
"""Three samples of each of two problems, which share a prefix; no two of a problem are neighbours."""


def load(pair: Path, **options: object) -> Scorer:
    """Load a scorer, whatever the options are."""
    return Scorer.load(pair, **options)  # type: ignore[arg-type]


def alone(scorer: Scorer, record: Record) -> Result:
    """Score one record."""
    (result,) = scorer.score([record])
    return result

"""Provenance as facts of a table: names and values that stand below it and in each row of its CSV."""

from __future__ import annotations

from importlib.metadata import version

from stepscore.jobs.provenance import Provenance
from stepscore.tabular.table import Fact

PAIR_CHARS = 12


def provenance_facts(origin: Provenance) -> list[Fact]:
    """Return the version that computes the figures, and what is known of the rewards they are made of.

    The date is that of the scoring, or of a timing: equal inputs give equal tables.
    """
    facts = [Fact.of("stepscore", "stepscore_version", version("stepscore"))]
    facts.append(Fact.of("pair", "pair", origin.pair, (origin.pair or "unknown")[:PAIR_CHARS]))
    if origin.convention is not None:
        facts.append(Fact.of("convention", "convention", origin.convention.value))
    if origin.beta is not None:
        facts.append(Fact.of("beta", "beta", origin.beta, f"{origin.beta:g}"))
    if origin.date is not None:
        facts.append(Fact.of("date", "date", origin.date))
    if origin.version not in (None, version("stepscore")):
        facts.append(Fact.of("scored by stepscore", "scored_by_version", origin.version))
    return facts

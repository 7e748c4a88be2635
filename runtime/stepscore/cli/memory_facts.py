"""Say in words how much memory scoring needs, for `inspect` and `score --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.manifest import Manifest
from stepscore.cli.results import ResidencyNeed
from stepscore.enums import Residency
from stepscore.memory.cards import described, expectations
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import Settings, residencies, usual_batch_tokens

Facts = Iterator[tuple[str, str]]
"""Names and values of a two-column table."""


def describe(settings: Settings) -> str:
    """Return the settings as text."""
    partial = settings.residency is Residency.PARTIAL
    kept = f", {settings.resident_stages} stages resident" if partial else ""
    return (
        f"{settings.residency}{kept}, batches of {settings.max_batch_tokens:,} tokens, windows of "
        f"{settings.window_tokens:,}, head in chunks of {settings.head_rows:,} tokens"
    )


def residency_needs(manifest: Manifest) -> list[ResidencyNeed]:
    """Return the estimated memory of full batches, by residency, of the usual size and an eighth of it."""
    most = usual_batch_tokens(manifest)
    needs = []
    for residency in residencies(manifest):
        if residency is Residency.PARTIAL:
            continue  # what lies between the others
        for tokens in (most, most // 8):
            settings = fit_settings(manifest, residency=residency, max_batch_tokens=tokens)
            total = estimate(manifest, settings).total
            needs.append(
                ResidencyNeed(
                    residency=residency, max_batch_tokens=tokens, on_gpu=settings.on_gpu, total=total
                )
            )
    return needs


def memory_facts(manifest: Manifest) -> Facts:
    """Yield the estimated memory by residency; of a pair for CUDA also what cards can do."""
    needs = residency_needs(manifest)
    for large, small in zip(needs[::2], needs[1::2], strict=True):
        sizes = [
            f"{size(each.total)} in batches of {each.max_batch_tokens:,} tokens" for each in (large, small)
        ]
        on = " of the GPU's memory" if large.on_gpu else ""
        yield "memory", f"{large.residency}: {', '.join(sizes)}{on}"
    if uses_generic_graphs(manifest):
        yield from card_facts(manifest)


def card_facts(manifest: Manifest) -> Facts:
    """Yield what each card is expected to do with a pair for CUDA."""
    for expected in expectations(manifest):
        card = expected.card
        yield f"{card.name}, {card.gigabytes:g} GB", described(manifest, expected)


def where(settings: Settings) -> str:
    """Return which memory is meant, where it is not the process's."""
    return " of the GPU's memory" if settings.on_gpu else ""


def size(num_bytes: int) -> str:
    """Return a size in GB.

    >>> size(1_340_000_000)
    '1.34 GB'
    """
    return f"{num_bytes / 1e9:,.2f} GB"

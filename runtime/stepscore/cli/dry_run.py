"""Predict tokens, batches and memory without loading a model, for `score --dry-run` and `inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.manifest import Manifest
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import GivenRows
from stepscore.batching.windows import Window, WindowPlanner
from stepscore.enums import Convention, Residency
from stepscore.errors import InputError
from stepscore.jobs.job import JobOptions
from stepscore.memory.cards import described, expectations
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import Settings, residencies, usual_batch_tokens


@dataclass(slots=True)
class _Tally:
    """Counts over the windows planned so far."""

    records: int = 0
    tokens: int = 0
    computed: int = 0
    longest: int = 0
    batches: int = 0
    windows: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, window: Window[Any]) -> list[Batch]:
        batches = [group.batch for group in window.groups]
        for item in window.items:
            self.records += 1
            if isinstance(item.prompt, InputError):
                self.errors[item.prompt.code] += 1
            self.tokens += item.num_tokens
            self.longest = max(self.longest, item.num_tokens)
        self.computed += sum(len(batch.input_ids) for batch in batches)
        self.batches += len(batches)
        self.windows += bool(batches)
        return batches


Facts = Iterator[tuple[str, str]]
"""Names and values of a two-column table."""


def dry_run_facts(path: Path, lines: BinaryIO, options: JobOptions, load: Mapping[str, Any]) -> Facts:
    """Read, encode and plan a file as a scorer loaded with these options would."""
    pair = Pair.open(path)
    chosen = ("residency", "memory_limit", "max_batch_tokens", "window_tokens", "provider")
    settings = fit_settings(pair.manifest, **{name: load[name] for name in chosen})
    windows = WindowPlanner(
        pair.encoder(),
        Convention(load["convention"]),
        settings.max_batch_tokens,
        settings.window_tokens,
        pair.manifest.architecture.vocab_size,
        tokens=load["tokens"],
        materializes_scores=settings.materializes_scores,
        given=GivenRows.of(pair.prefix()),
    )
    tally = _Tally()
    parsed = ((line, line.record) for line in options.lines(lines))
    most = PeakLoad.of(tally.add(window) for window in windows.of(parsed))
    bad = "".join(f", {count:,} {code}" for code, count in sorted(tally.errors.items()))
    yield "records", f"{tally.records:,}{bad}"
    yield "tokens", f"{tally.tokens:,}, the longest record has {tally.longest:,}"
    if tally.tokens:
        share = 100 * tally.computed / tally.tokens
        yield (
            "computed",
            f"{tally.computed:,} tokens ({share:.0f} %) with prefix sharing, each prefix once per batch",
        )
        yield "batches", f"{tally.batches:,} in {tally.windows:,} windows"
    yield "settings", describe(settings)
    needed = _size(estimate(pair.manifest, settings, most).total)
    yield "memory", f"about {needed}{_where(settings)}, estimated peak"
    if settings.on_gpu:
        yield from card_facts(pair.manifest)


def describe(settings: Settings) -> str:
    """Return the settings as text."""
    partial = settings.residency is Residency.PARTIAL
    kept = f", {settings.resident_stages} stages resident" if partial else ""
    return (
        f"{settings.residency}{kept}, batches of {settings.max_batch_tokens:,} tokens, windows of "
        f"{settings.window_tokens:,}, head in chunks of {settings.head_rows:,} tokens"
    )


def memory_facts(manifest: Manifest) -> Facts:
    """Yield the estimated memory of full batches, by residency; of a pair for CUDA also what cards can do."""
    most = usual_batch_tokens(manifest)
    for residency in residencies(manifest):
        if residency is Residency.PARTIAL:
            continue  # what lies between the others
        needs = []
        for tokens in (most, most // 8):
            settings = fit_settings(manifest, residency=residency, max_batch_tokens=tokens)
            needs.append(f"{_size(estimate(manifest, settings).total)} in batches of {tokens:,} tokens")
        yield "memory", f"{residency}: {', '.join(needs)}{_where(settings)}"
    if uses_generic_graphs(manifest):
        yield from card_facts(manifest)


def card_facts(manifest: Manifest) -> Facts:
    """Yield what each card is expected to do with a pair for CUDA."""
    for expected in expectations(manifest):
        card = expected.card
        yield f"{card.name}, {card.gigabytes:g} GB", described(manifest, expected)


def _where(settings: Settings) -> str:
    return " of the GPU's memory" if settings.on_gpu else ""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"

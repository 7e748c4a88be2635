"""Predict tokens, batches, memory and time of a run: `score --dry-run`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from stepscore.artifact.manifest import Manifest
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import Given, GivenRows
from stepscore.batching.kept_prefixes import keeping
from stepscore.batching.windows import Window, WindowPlanner
from stepscore.cli.json_mode import print_result
from stepscore.cli.memory_facts import Facts, card_facts, describe, size, where
from stepscore.cli.results import DryRunResult, MemoryNeed, RunSettings, TimeNeed
from stepscore.cli.run_job import total_of
from stepscore.cli.run_time import NotMeasured, Sample, measure, reason_not_to_measure
from stepscore.cli.tables import console, print_facts
from stepscore.enums import Convention
from stepscore.errors import InputError
from stepscore.jobs.job import JobOptions, Tally
from stepscore.jobs.jsonl import ParsedLine
from stepscore.jobs.progress import Progress, duration, shown
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.kept import bytes_per_kept_token, empty_cache, num_kept_tokens
from stepscore.memory.peak import MemoryEstimate, PeakLoad
from stepscore.memory.settings import Settings


@dataclass(slots=True)
class PlanTally(Tally):
    """Counts over the windows planned so far, and records to measure the speed with."""

    computed: int = 0
    longest: int = 0
    batches: int = 0
    windows: int = 0
    sample: Sample = field(default_factory=Sample)

    def add(self, window: Window[ParsedLine]) -> list[Batch]:
        """Count a window; return its batches."""
        batches = [group.batch for group in window.groups]
        for item in window.items:
            self.records += 1
            if isinstance(item.prompt, InputError):
                self.errors[item.prompt.code] += 1
            else:
                self.sample.add(item.key.record, item.num_tokens)
            self.tokens += item.num_tokens
            self.longest = max(self.longest, item.num_tokens)
        self.computed += window.num_computed
        self.batches += len(batches)
        self.windows += bool(batches)
        return batches


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that was planned to its end: counts, settings, memory."""

    pair: Pair
    tally: PlanTally
    planner: WindowPlanner
    settings: Settings
    memory: MemoryEstimate


def print_dry_run(
    path: Path, lines: BinaryIO, options: JobOptions, load: dict[str, Any], *, quiet: bool, as_json: bool
) -> None:
    """Plan a run, measure its speed, and print both."""
    tally = PlanTally()
    with (
        contextlib.nullcontext(Progress(None))
        if quiet
        else shown(tally, total_of(lines, options), sys.stderr, doing="planning")
    ):
        planned = plan_run(path, lines, options, load, tally)
    time = time_of(path, planned, load, quiet=quiet)
    if as_json:
        print_result(result_of(planned, time))
    else:
        print_facts(console(sys.stdout), facts(planned, time))


def plan_run(
    path: Path, lines: BinaryIO, options: JobOptions, load: Mapping[str, Any], tally: PlanTally
) -> Planned:
    """Read, encode and plan a file as a scorer loaded with these options would; count into `tally`."""
    pair = Pair.open(path)
    chosen = ("residency", "memory_limit", "max_batch_tokens", "window_tokens", "provider")
    prefix_cache = load["prefix_cache"] or 0
    settings = fit_settings(pair.manifest, **{name: load[name] for name in chosen}, prefix_cache=prefix_cache)
    given: Given = GivenRows.of(pair.prefix())
    if prefix_cache:
        given = empty_cache(pair, prefix_cache, settings.element_bytes)
    planner = WindowPlanner(
        pair.encoder(),
        Convention(load["convention"]),
        settings.max_batch_tokens,
        settings.window_tokens,
        pair.manifest.architecture.vocab_size,
        tokens=load["tokens"],
        materializes_scores=settings.materializes_scores,
        given=given,
    )
    tally.sample.most_tokens = 2 * settings.max_batch_tokens
    parsed = ((line, line.record) for line in options.lines(lines))
    most = PeakLoad.of(_kept(tally.add(window), given) for window in planner.of(parsed))
    return Planned(pair, tally, planner, settings, estimate(pair.manifest, settings, most))


def _kept(batches: list[Batch], given: Given) -> list[Batch]:
    """Keep what an engine would keep of the batches of a window, before the next window is planned."""
    for batch in batches:
        with keeping(given, [batch]):
            pass
    return batches


def time_of(path: Path, planned: Planned, load: dict[str, Any], *, quiet: bool) -> TimeNeed | NotMeasured:
    """Measure the speed on a few records, and estimate the time of the run; say why where it is not done."""
    tally = planned.tally
    reason = reason_not_to_measure(tally.sample, planned.memory.total, planned.settings)
    if reason is not None:
        return reason
    if not quiet:
        print("stepscore: measuring the speed on a few records", file=sys.stderr, flush=True)
    # Without kept prefixes: records are measured twice.
    planner = replace(planned.planner, given=GivenRows.of(planned.pair.prefix()))
    speed = measure(path, {**load, "prefix_cache": None}, tally.sample, planner)
    if isinstance(speed, NotMeasured):
        return speed
    return speed.of_run(windows=tally.windows, computed=tally.computed, tokens=tally.tokens)


def facts(planned: Planned, time: TimeNeed | NotMeasured) -> Facts:
    """Yield names and values of a two-column table."""
    tally, settings = planned.tally, planned.settings
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
    yield "memory", f"about {size(planned.memory.total)}{where(settings)}, estimated peak"
    if settings.prefix_cache:
        yield "prefix cache", _cache_facts(planned.pair.manifest, settings)
    yield from _time_facts(time)
    if settings.on_gpu:
        yield from card_facts(planned.pair.manifest)


def _cache_facts(manifest: Manifest, settings: Settings) -> str:
    of_token = bytes_per_kept_token(manifest, settings.element_bytes)
    tokens = num_kept_tokens(manifest, settings.prefix_cache, settings.element_bytes)
    host = " in the process's memory" if settings.on_gpu else ""
    return f"{size(settings.prefix_cache)}{host}: {tokens:,} tokens of {of_token / 1e3:,.1f} kB"


def _time_facts(time: TimeNeed | NotMeasured) -> Iterator[tuple[str, str]]:
    if isinstance(time, NotMeasured):
        yield "time", f"not measured: {time.reason}"
        return
    yield (
        "time",
        f"about {duration(time.seconds)} at {time.tokens_per_second:,.0f} tokens/s, estimated from "
        f"{time.measured_records:,} records of {time.measured_tokens:,} tokens (loading: "
        f"{duration(time.load_seconds)})",
    )


def result_of(planned: Planned, time: TimeNeed | NotMeasured) -> DryRunResult:
    """Return what `score --dry-run --json` prints."""
    tally, settings, memory = planned.tally, planned.settings, planned.memory
    return DryRunResult(
        pair=planned.pair.fingerprint,
        records=tally.records,
        errors=dict(sorted(tally.errors.items())),
        tokens=tally.tokens,
        longest=tally.longest,
        computed=tally.computed,
        batches=tally.batches,
        windows=tally.windows,
        settings=RunSettings(
            residency=settings.residency,
            resident_stages=settings.resident_stages,
            max_batch_tokens=settings.max_batch_tokens,
            window_tokens=settings.window_tokens,
            head_rows=settings.head_rows,
        ),
        memory=MemoryNeed(
            on_gpu=settings.on_gpu,
            total=memory.total,
            process=memory.process,
            weights=memory.weights,
            batch=memory.batch,
            window=memory.window,
            kept=memory.kept,
        ),
        time=None if isinstance(time, NotMeasured) else time,
        not_measured=time.reason if isinstance(time, NotMeasured) else None,
    )

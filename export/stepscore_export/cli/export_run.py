"""Runs `stepscore export`: the plan first, then the export with its progress, then a summary of the pair."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from stepscore.artifact.pair import Pair
from stepscore.cli.inspect_pair import pair_facts
from stepscore.cli.json_mode import print_result
from stepscore.cli.results import ExportPlanResult, ExportResult
from stepscore.enums import Coding, Precision
from stepscore_export.backends.base import Backend
from stepscore_export.options import Options
from stepscore_export.pipeline.export import write_pair
from stepscore_export.pipeline.plan import ExportPlan, open_plan
from stepscore_export.staging import check_output
from stepscore_export.validation.texts import NO_TEXTS, read_texts


def run_export(
    policy: str,
    reference: str,
    output: Path,
    options: Options,
    *,
    calibration: Path | None,
    calibrate: bool,
    fidelity_data: Path | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Export, or with `dry_run` check everything and print what an export would need."""
    check_output(output, force=force)
    texts = None if fidelity_data is None else read_texts(fidelity_data)
    calibrated_on = (None if calibrate else NO_TEXTS) if calibration is None else read_texts(calibration)
    with (
        _warnings_printed(),
        open_plan(policy, reference, options, texts=texts, calibration=calibrated_on) as plan,
    ):
        if dry_run:
            if as_json:
                print_result(_planned(plan, output))
            else:
                _print_plan(plan, output)
            return
        started = time.monotonic()
        pair = _write_with_progress(plan, output, force=force, quiet=quiet)
        seconds = time.monotonic() - started
        if as_json:
            print_result(ExportResult(pair=pair_facts(pair), seconds=seconds, manifest=pair.manifest))
        elif not quiet:
            _print_summary(pair, plan.backend, seconds)


@contextmanager
def _warnings_printed() -> Iterator[None]:
    """Print what the logger "stepscore" warns of on stderr, one line each, above a progress bar."""
    logger, handler = logging.getLogger("stepscore"), _Warnings()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"warning: {record.getMessage()}", file=sys.stderr)


def _write_with_progress(plan: ExportPlan, output: Path, *, force: bool, quiet: bool) -> Pair:
    with tqdm(
        total=plan.needs.parameters, unit="param", unit_scale=True, disable=quiet or None, mininterval=1
    ) as bar:

        def progress(what: str, parameters: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(parameters)

        return write_pair(plan, output, force=force, progress=progress)


def _planned(plan: ExportPlan, output: Path) -> ExportPlanResult:
    needs, texts = plan.needs, plan.calibration
    return ExportPlanResult(
        output=str(output),
        description=plan.backend.describe(),
        parameters=needs.parameters,
        source_bytes=needs.source_bytes,
        distance=plan.distance.overall,
        calibration=None if texts is None else texts.name,
        calibration_tokens=0 if texts is None else texts.num_tokens,
        disk_bytes=needs.disk_bytes,
        weight_bytes=needs.weight_bytes,
        memory_bytes=needs.memory_bytes,
        seconds=needs.seconds,
    )


def _print_plan(plan: ExportPlan, output: Path) -> None:
    needs, storage = plan.needs, plan.backend.storage
    weights = ", ".join(f"{folder} {_size(count)}" for folder, count in needs.weight_bytes.items())
    texts = plan.calibration
    graphs = "" if storage.target is None else f" for {storage.target}, block size {storage.block_size}"
    for name, value in {
        "source": f"{needs.parameters / 1e6:,.1f} million parameters in two checkpoints, "
        f"{_size(needs.source_bytes)}",
        "distance": f"|policy - reference| is {100 * plan.distance.overall:.2f} % of |reference|",
        "output": f"{output}: {plan.backend.describe()}{graphs}",
        "calibration": "none" if texts is None else f"{texts.num_tokens:,} tokens of {texts.name} text",
        "disk": f"{_size(needs.disk_bytes)} ({weights})",
        "memory": f"about {_size(needs.memory_bytes)} peak",
        "time": f"about {needs.seconds:,.0f} s on two cores, self-test included",
    }.items():
        click.echo(f"{name:<13}{value}")


def _print_summary(pair: Pair, backend: Backend[Any], seconds: float) -> None:
    manifest = pair.manifest
    lines = [f"{pair.path}: {backend.describe()}, {_size(pair.num_bytes())}, sealed after {seconds:,.1f} s"]
    if manifest.coding is Coding.INDEPENDENT and manifest.precision not in _FLOATS:
        apart = f"{100 * manifest.distance.overall:.2f} %"
        lines.append(f"each model was quantized alone: |policy - reference| is {apart} of |reference|")
    if manifest.selftest is not None:
        test = manifest.selftest
        lines.append(
            f"self-test on {test.provider}: hidden states off by {test.hidden_error:.2g} (relative RMS), "
            f"log-probs by {test.logprob_error:.2g} nats (RMS)"
        )
    if manifest.fidelity is not None:
        lines.append(f"fidelity: {manifest.fidelity}")
    for line in lines:
        click.echo(line, err=True)


_FLOATS = {Precision.FP32, Precision.FP16, Precision.BF16}


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"

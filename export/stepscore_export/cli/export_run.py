"""What `stepscore export` does: checks first, then the export with its progress, then what came of it."""

from __future__ import annotations

import time
from pathlib import Path

import click
from tqdm import tqdm

from stepscore.artifact.pair import Pair
from stepscore.enums import Activations, Exporter
from stepscore_export.options import BitsandbytesOptions, ExportOptions
from stepscore_export.pipeline.export import export_bitsandbytes, export_pair
from stepscore_export.pipeline.plan import ExportPlan, Options, plan_export
from stepscore_export.staging import check_output
from stepscore_export.validation.texts import bundled_texts, read_texts


def run_export(
    policy: str,
    reference: str,
    output: Path,
    options: Options,
    *,
    calibration: Path | None,
    fidelity_data: Path | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Export, or with `dry_run` check everything and print what an export would need."""
    check_output(output, force=force)
    texts = read_texts(fidelity_data) if fidelity_data is not None else bundled_texts()
    calibration_texts = read_texts(calibration) if calibration is not None else None
    plan = plan_export(policy, reference, options, (texts, calibration_texts))
    if dry_run:
        _print_plan(plan, output)
        return
    started = time.monotonic()
    with tqdm(
        total=plan.needs.parameters, unit="param", unit_scale=True, disable=quiet or None, mininterval=1
    ) as bar:

        def progress(what: str, parameters: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(parameters)

        if isinstance(options, BitsandbytesOptions):
            pair = export_bitsandbytes(
                policy, reference, output, options, texts=texts, force=force, progress=progress
            )
        else:
            pair = export_pair(
                policy,
                reference,
                output,
                options,
                texts=texts,
                calibration=calibration_texts,
                force=force,
                progress=progress,
            )
    if not quiet:
        _print_summary(pair, plan.options, time.monotonic() - started)


def _print_plan(plan: ExportPlan, output: Path) -> None:
    needs, options = plan.needs, plan.options
    weights = ", ".join(f"{folder} {_size(count)}" for folder, count in needs.weight_bytes.items())
    for name, value in {
        "source": f"{needs.parameters / 1e6:,.1f} million parameters in two checkpoints, "
        f"{_size(needs.source_bytes)}",
        "distance": f"|policy - reference| is {100 * plan.distance.overall:.2f} % of |reference|",
        "output": f"{output}: {describe(options)}{_graphs(options)}",
        "disk": f"{_size(needs.disk_bytes)} ({weights})",
        "memory": f"about {_size(needs.memory_bytes)} at the peak",
        "time": f"about {needs.seconds:,.0f} s on two cores, self-test included",
    }.items():
        click.echo(f"{name:<10}{value}")


def _graphs(options: Options) -> str:
    if isinstance(options, BitsandbytesOptions):
        return ""
    return f" for {options.target}, block size {options.block_size}"


def describe(options: Options) -> str:
    """Return precision and coding in a few words."""
    if isinstance(options, BitsandbytesOptions):
        return f"bitsandbytes {options.precision}, each model on its own"
    if options.exporter is Exporter.OPTIMUM:
        return f"{options.precision}, traced by optimum"
    if options.difference_precision is None:
        return f"{options.precision}, each model on its own" if options.bits else f"{options.precision}"
    activations = ", int8 activations" if options.activations is Activations.INT8 else ""
    return f"{options.precision} reference + {options.difference_precision} difference{activations}"


def _print_summary(pair: Pair, options: Options, seconds: float) -> None:
    manifest = pair.manifest
    lines = [f"{pair.path}: {describe(options)}, {_size(pair.num_bytes())}, sealed after {seconds:,.1f} s"]
    if isinstance(options, ExportOptions) and options.bits is not None and manifest.difference is None:
        apart = f"{100 * manifest.distance.overall:.2f} %"
        lines.append(f"each model was quantised on its own: the two are {apart} apart")
    if manifest.selftest is not None:
        test = manifest.selftest
        lines.append(
            f"self-test on {test.provider}: hidden rows off by {test.hidden_error:.2g} (relative RMS), "
            f"log-probs by {test.logprob_error:.2g} nats RMS"
        )
    if manifest.fidelity is not None:
        lines.append(f"fidelity: {manifest.fidelity}")
    for line in lines:
        click.echo(line, err=True)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"

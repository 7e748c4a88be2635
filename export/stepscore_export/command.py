"""What `stepscore export` does: checks first, then the export with its progress, then what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from tqdm import tqdm

from stepscore.artifact import Pair
from stepscore_export.checkpoint import Checkpoint, check_pair
from stepscore_export.estimate import Estimate, estimate
from stepscore_export.options import ExportOptions
from stepscore_export.pair import export_pair, prompt_template
from stepscore_export.seal import check_output


def run_export(
    policy: str,
    reference: str,
    output: Path,
    options: ExportOptions,
    *,
    force: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Export, or with `dry_run` check everything and print what an export would need."""
    check_output(output, force=force)
    plan = _plan(policy, reference, options)
    if dry_run:
        _print_plan(plan, output, options)
        return
    started = time.monotonic()
    with tqdm(
        total=plan.parameters, unit="param", unit_scale=True, disable=quiet or None, mininterval=1
    ) as bar:

        def progress(what: str, parameters: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(parameters)

        pair = export_pair(policy, reference, output, options, force=force, progress=progress)
    if not quiet:
        _print_summary(pair, time.monotonic() - started)


def _plan(policy: str, reference: str, options: ExportOptions) -> Estimate:
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        prompt_template(policy_model)
        return estimate(policy_model, reference_model, options)


def _print_plan(plan: Estimate, output: Path, options: ExportOptions) -> None:
    policy_bytes, reference_bytes = plan.weight_bytes
    for name, value in {
        "source": f"{plan.parameters / 1e6:,.1f} million parameters in two checkpoints, "
        f"{_size(plan.source_bytes)}",
        "output": f"{output}: {options.precision} for {options.target}, block size {options.block_size}",
        "disk": f"{_size(plan.disk_bytes)} (policy {_size(policy_bytes)}, "
        f"reference {_size(reference_bytes)})",
        "memory": f"about {_size(plan.memory_bytes)} at the peak",
        "time": f"about {plan.seconds:,.0f} s on two cores, self-test included",
    }.items():
        click.echo(f"{name:<8}{value}")


def _print_summary(pair: Pair, seconds: float) -> None:
    selftest = pair.manifest.selftest
    click.echo(f"{pair.path}: {_size(pair.num_bytes())}, sealed after {seconds:,.1f} s", file=sys.stderr)
    if selftest is not None:
        click.echo(
            f"self-test on {selftest.provider}: hidden rows off by {selftest.hidden_error:.2g} "
            f"(relative RMS), log-probs by {selftest.logprob_error:.2g} nats RMS",
            file=sys.stderr,
        )


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"

"""`stepscore export`: arguments in, one pair out, progress on standard error."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from stepscore.artifact import Pair, Precision, Target
from tqdm import tqdm

from stepscore_export.checkpoint import Checkpoint, check_pair
from stepscore_export.estimate import Estimate, estimate
from stepscore_export.options import DEFAULT_BETA, ExportOptions
from stepscore_export.pair import export_pair
from stepscore_export.template import literals


@click.command(
    epilog="Example: stepscore export --policy PRIME-RL/EurusPRM-Stage2@main "
    "--reference Qwen/Qwen2.5-Math-7B-Instruct@main --precision int8 --output eurus-int8"
)
@click.option(
    "--policy", required=True, help="The process reward model: a Hugging Face folder or id@revision."
)
@click.option("--reference", required=True, help="The model it was trained from: a folder or id@revision.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder that becomes the pair."
)
@click.option(
    "--precision",
    type=click.Choice(Precision),
    default=Precision.FP32,
    show_default=True,
    help="How weights are stored.",
)
@click.option(
    "--target",
    type=click.Choice(Target),
    default=Target.CPU,
    show_default=True,
    help="Which provider the graphs are for.",
)
@click.option(
    "--block-size",
    default=32,
    show_default=True,
    help="Columns that share a scale at int8 and int4: 16, 32, 64, 128 or 256.",
)
@click.option("--beta", default=DEFAULT_BETA, show_default=True, help="Scale of the rewards.")
@click.option("--force", is_flag=True, help="Replace a pair that stands at --output.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what it would need, write nothing.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def export(
    policy: str,
    reference: str,
    output: Path,
    *,
    precision: Precision,
    target: Target,
    block_size: int,
    beta: float,
    force: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Turn two Qwen2 checkpoints into a pair that `stepscore score` reads.

    Weights are read, converted and written in row blocks, so a 7.6B pair needs no more memory than one of
    its layers. The pair is run and compared before it appears under its name.
    """
    options = ExportOptions(precision=precision, target=target, block_size=block_size, beta=beta)
    plan = _plan(policy, reference, options)
    if dry_run:
        _print_plan(plan, output, options)
        return
    started = time.monotonic()
    with tqdm(total=plan.parameters, unit="param", unit_scale=True, disable=quiet, mininterval=1) as bar:

        def progress(what: str, parameters: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(parameters)

        pair = export_pair(policy, reference, output, options, force=force, progress=progress)
    if not quiet:
        _print_summary(pair, time.monotonic() - started)


def _plan(policy: str, reference: str, options: ExportOptions) -> Estimate:
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        literals(policy_model.chat_template())
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
        "time": f"about {plan.seconds:,.0f} s on two cores, then a self-test of a similar length",
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

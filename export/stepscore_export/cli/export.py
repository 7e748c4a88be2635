"""`stepscore export`: options and help. The rest is imported when it runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from stepscore.cli.load_options import beta_option, json_option, output_folder_option, quiet_option
from stepscore.enums import (
    DEFAULT_BETA,
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Target,
)


@click.command(
    epilog="Example: stepscore export --policy PRIME-RL/EurusPRM-Stage2@main "
    "--reference Qwen/Qwen2.5-Math-7B-Instruct@main --precision int8 --output eurus-int8"
)
@click.option("--policy", required=True, help="Process reward model: a Hugging Face folder or id@revision.")
@click.option(
    "--reference", required=True, help="Model that the policy was trained from: a folder or id@revision."
)
@output_folder_option("Folder that becomes the pair.", required=True)
@click.option(
    "--format",
    "of_format",
    type=click.Choice(Format, case_sensitive=False),
    default=Format.ONNX.value,
    show_default=True,
    help="Engine of the pair: onnx (ONNX Runtime), or bitsandbytes (PyTorch; int8, nf4, fp4).",
)
@click.option(
    "--precision",
    type=click.Choice(Precision, case_sensitive=False),
    help="Weight precision: fp32, fp16, bf16, int8, int4; with bitsandbytes int8, nf4, fp4.  "
    "[default: int8; fp32 with optimum]",
)
@click.option(
    "--exporter",
    type=click.Choice(Exporter, case_sensitive=False),
    default=Exporter.STEPSCORE.value,
    show_default=True,
    help="Source of the graphs: stepscore's own, or transformers' code traced by optimum (fp32, fp16, bf16).",
)
@click.option(
    "--target",
    type=click.Choice(Target, case_sensitive=False),
    default=Target.CPU.value,
    show_default=True,
    help="Execution provider that the graphs are written for.",
)
@click.option(
    "--coding",
    type=click.Choice(Coding, case_sensitive=False),
    default=Coding.AUTO.value,
    show_default=True,
    help="At int8 and int4: store reference and difference (delta compression), or each model alone.",
)
@click.option(
    "--difference-precision",
    type=click.Choice(DifferencePrecision, case_sensitive=False),
    help="Precision of the difference.  [default: int8 with int8 activations, else int4]",
)
@click.option(
    "--activations",
    type=click.Choice(Activations, case_sensitive=False),
    help="Activation precision: exact (weight-only), or int8 (W8A8; CPU and 8-bit weights only).  "
    "[default: int8 where supported]",
)
@click.option(
    "--products",
    type=click.Choice(Products, case_sensitive=False),
    help="Separate GEMMs for base and difference, or one of their sum (merged).  [default: merged]",
)
@click.option(
    "--block-size",
    default=32,
    show_default=True,
    help="Columns per scale at int8 and int4: 16, 32, 64, 128 or 256.",
)
@click.option(
    "--rotation/--no-rotation",
    default=None,
    help="Rotate the weights of a difference-coded pair, which spreads outlier channels.  "
    "[default: with int8 activations]",
)
@click.option(
    "--prefix/--no-prefix",
    default=True,
    show_default=True,
    help="Store the keys and values of the chat template's prefix, computed in fp32 from the checkpoints.",
)
@beta_option(DEFAULT_BETA)
@click.option(
    "--calibration",
    metavar="FILE.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Calibrate the base (GPTQ) on these solutions instead of those that come with stepscore.",
)
@click.option(
    "--no-calibration", is_flag=True, help="Round the base to the nearest codes: faster, less accurate."
)
@click.option(
    "--fidelity-data",
    metavar="FILE.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure fidelity on these solutions instead of those that come with stepscore.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing pair.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what the export needs, write nothing.")
@quiet_option
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    /,
    policy: str,
    reference: str,
    output: Path,
    *,
    of_format: Format,
    precision: Precision | None,
    exporter: Exporter,
    beta: float,
    calibration: Path | None,
    no_calibration: bool,
    fidelity_data: Path | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Export two checkpoints, policy and reference, as a pair for `stepscore score`.

    Weights are read, converted and written in row blocks, so that a 7.6B pair needs no more memory than one
    of its layers; with --format bitsandbytes one model at a time is loaded whole. Before the pair appears at
    --output it is run and compared with the checkpoints.
    """
    from stepscore_export.cli.export_run import run_export
    from stepscore_export.options import (
        BitsandbytesOptions,
        ExportOptions,
        reject_with_bitsandbytes,
    )

    if calibration is not None and no_calibration:
        raise click.UsageError("--calibration and --no-calibration exclude each other; give one of them")
    chosen: ExportOptions | BitsandbytesOptions
    if of_format is Format.BITSANDBYTES:
        reject_with_bitsandbytes(_given(ctx, [*options, "exporter", "calibration", "no_calibration"]))
        chosen = BitsandbytesOptions(precision or Precision.INT8, beta)
    else:
        chosen = ExportOptions(
            precision or _default_precision(exporter), beta=beta, exporter=exporter, **options
        )
    run_export(
        policy,
        reference,
        output,
        chosen,
        calibration=calibration,
        calibrate=not no_calibration,
        fidelity_data=fidelity_data,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
        as_json=as_json,
    )


def _default_precision(exporter: Exporter) -> Precision:
    return Precision.FP32 if exporter is Exporter.OPTIMUM else Precision.INT8


def _given(ctx: click.Context, names: list[str]) -> list[str]:
    """Return those of the options that were given, as they are spelled."""
    return [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in names and ctx.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]

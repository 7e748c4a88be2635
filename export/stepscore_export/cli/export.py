"""`stepscore export`: its options. What it does is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from stepscore.cli.load_options import beta_option, output_folder_option, quiet_option
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
@click.option(
    "--policy", required=True, help="The process reward model: a Hugging Face folder or id@revision."
)
@click.option("--reference", required=True, help="The model it was trained from: a folder or id@revision.")
@output_folder_option("Folder to write the pair to.", required=True)
@click.option(
    "--format",
    "of_format",
    type=click.Choice(Format, case_sensitive=False),
    default=Format.ONNX.value,
    show_default=True,
    help="What runs the pair: ONNX Runtime, or PyTorch on bitsandbytes' weights (int8, nf4, fp4).",
)
@click.option(
    "--precision",
    type=click.Choice(Precision, case_sensitive=False),
    help="How weights are stored: fp32, fp16, bf16, int8, int4; with bitsandbytes int8, nf4, fp4.  "
    "[default: int8; fp32 with optimum]",
)
@click.option(
    "--exporter",
    type=click.Choice(Exporter, case_sensitive=False),
    default=Exporter.STEPSCORE.value,
    show_default=True,
    help="What writes the graphs; optimum traces transformers' code: fp32, fp16, bf16, for any provider.",
)
@click.option(
    "--target",
    type=click.Choice(Target, case_sensitive=False),
    default=Target.CPU.value,
    show_default=True,
    help="Which provider the graphs are for.",
)
@click.option(
    "--coding",
    type=click.Choice(Coding, case_sensitive=False),
    default=Coding.AUTO.value,
    show_default=True,
    help="At int8 and int4: store the reference and the difference, or each model on its own.",
)
@click.option(
    "--difference-precision",
    type=click.Choice(DifferencePrecision, case_sensitive=False),
    help="How the difference is stored.  [default: int8 with int8 activations, else int4]",
)
@click.option(
    "--activations",
    type=click.Choice(Activations, case_sensitive=False),
    help="Multiply with rows as they are, or rounded to 8 bits: integer products, on the CPU only.  "
    "[default: int8 where that can be]",
)
@click.option(
    "--products",
    type=click.Choice(Products, case_sensitive=False),
    help="Multiply with base and difference one by one, or with their sum.  [default: merged]",
)
@click.option(
    "--block-size",
    default=32,
    show_default=True,
    help="Columns that share a scale at int8 and int4: 16, 32, 64, 128 or 256.",
)
@beta_option(DEFAULT_BETA)
@click.option(
    "--calibration",
    metavar="FILE.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Round the reference for the rows these solutions give (GPTQ): a fifth to two thirds off the error.",
)
@click.option(
    "--fidelity-data",
    metavar="FILE.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure the pair's fidelity on these solutions, not on those that come with stepscore.",
)
@click.option("--force", is_flag=True, help="Replace a pair that stands at --output.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what it would need, write nothing.")
@quiet_option
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
    fidelity_data: Path | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Turn two Qwen2 checkpoints into a pair that `stepscore score` reads.

    Weights are read, converted and written in row blocks, so a 7.6B pair needs no more memory than one of
    its layers; for bitsandbytes a model is loaded whole. The pair is run and compared before it appears under
    its name.
    """
    from stepscore_export.cli.export_run import run_export
    from stepscore_export.options import (
        BitsandbytesOptions,
        ExportOptions,
        refuse_with_bitsandbytes,
    )

    chosen: ExportOptions | BitsandbytesOptions
    if of_format is Format.BITSANDBYTES:
        refuse_with_bitsandbytes(_given(ctx, [*options, "exporter", "calibration"]))
        chosen = BitsandbytesOptions(precision or Precision.INT8, beta)
    else:
        chosen = ExportOptions(
            precision or _usual_precision(exporter), beta=beta, exporter=exporter, **options
        )
    run_export(
        policy,
        reference,
        output,
        chosen,
        calibration=calibration,
        fidelity_data=fidelity_data,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
    )


def _usual_precision(exporter: Exporter) -> Precision:
    return Precision.FP32 if exporter is Exporter.OPTIMUM else Precision.INT8


def _given(ctx: click.Context, names: list[str]) -> list[str]:
    """Return those of the options that somebody asked for, as they are spelled."""
    return [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name in names and ctx.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]

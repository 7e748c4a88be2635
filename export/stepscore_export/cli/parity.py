"""`stepscore parity`: options and help. The rest is imported when it runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path

import click

from stepscore.cli.formats import TableFormat, format_option
from stepscore.cli.load_options import (
    beta_option,
    convention_option,
    limit_option,
    output_folder_option,
)
from stepscore.engine.pytorch.loading import Device
from stepscore.enums import Convention
from stepscore_export.parity.pytorch import DType


@click.command(
    epilog="Example: stepscore parity eurus-int8 --policy PRIME-RL/EurusPRM-Stage2@main "
    "--reference Qwen/Qwen2.5-Math-7B-Instruct@main --data solutions.jsonl --limit 50 --output parity"
)
@click.argument("pair", type=click.Path(path_type=Path))
@click.option(
    "--policy", required=True, help="Policy that the pair was exported from: a folder or id@revision."
)
@click.option(
    "--reference", required=True, help="Reference that the pair was exported from: a folder or id@revision."
)
@click.option(
    "--data",
    required=True,
    metavar="FILE.jsonl|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Solutions in the input format of `stepscore score`; - is standard input.",
)
@click.option(
    "--dtype",
    type=click.Choice(DType, case_sensitive=False),
    default=DType.FP32.value,
    show_default=True,
    help="Precision of PyTorch; at fp16 and bf16 its own rounding is part of every error.",
)
@click.option(
    "--device",
    type=click.Choice(Device, case_sensitive=False),
    default=Device.AUTO.value,
    show_default=True,
    help="Device of PyTorch; the pair runs on the provider that it was exported for.",
)
@convention_option
@beta_option()
@limit_option("Compare")
@format_option
@output_folder_option("Folder for parity.json and two plots (SVG).")
@click.pass_context
def parity(
    ctx: click.Context,
    *,
    pair: Path,
    policy: str,
    reference: str,
    data: str,
    dtype: DType,
    device: Device,
    convention: Convention,
    beta: float | None,
    limit: int | None,
    table_format: TableFormat,
    output: Path | None,
) -> None:
    """Compare a PAIR with PyTorch on your own text and hardware.

    Both read the same token ids. PyTorch runs transformers' model of the two checkpoints, one sequence at a
    time and one model in memory at a time.
    """
    from stepscore_export.parity.run import ParityOptions, run_parity

    options = ParityOptions(dtype, device, convention, beta, limit)
    left_out = run_parity(pair, policy, reference, data, options, output=output, table_format=table_format)
    ctx.exit(1 if left_out else 0)

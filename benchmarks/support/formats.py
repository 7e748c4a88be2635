"""Rows of the format matrix: every format at every precision, and how each is made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contender import Checkpoints
from benchmarks.peers.transformers_card import TorchPrecision


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """A row that is a pair: the options of `stepscore export`."""

    family: str
    name: str
    options: tuple[str, ...]

    def export(self, models: Checkpoints, output: Path) -> Path:
        """Run the command; raise ExportRejected with its message if it rejects the options.

        The command measures its fidelity on one line only: the matrix measures fidelity itself.
        """
        line = models.scratch / "line.jsonl"
        line.write_text('{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}\n', encoding="utf-8")
        command = [sys.executable, "-c", "from stepscore.cli.main import main; main()", "export", "--quiet"]
        sources = ["--policy", str(models.policy), "--reference", str(models.reference)]
        done = subprocess.run(
            [*command, *sources, "--output", str(output), "--fidelity-data", str(line), *self.options],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
            raise ExportRejected(lines[-1][len("error: ") :] if lines else done.stderr[-200:])
        return output


@dataclass(frozen=True, slots=True)
class PytorchRow:
    """A row that is the checkpoints themselves, in PyTorch."""

    precision: TorchPrecision
    bytes_per_weight: int

    family = "PyTorch"

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return self.precision.value


class ExportRejected(Exception):
    """`stepscore export` ended with an error."""


STEPSCORE, OPTIMUM, BITSANDBYTES = "ONNX (stepscore)", "ONNX (optimum)", "bitsandbytes"
CODED = ("--coding", "difference")
ROWS: tuple[ExportedRow | PytorchRow, ...] = (
    *(ExportedRow(STEPSCORE, each, ("--precision", each)) for each in ("fp32", "fp16", "bf16")),
    ExportedRow(
        STEPSCORE, "int8 + int8, int8 activations", ("--precision", "int8", *CODED, "--activations", "int8")
    ),
    ExportedRow(STEPSCORE, "int8 + int4", ("--precision", "int8", *CODED, "--activations", "exact")),
    ExportedRow(STEPSCORE, "int4 + int4", ("--precision", "int4", *CODED)),
    ExportedRow(OPTIMUM, "fp32", ("--exporter", "optimum", "--precision", "fp32")),
    *(
        ExportedRow(BITSANDBYTES, each, ("--format", "bitsandbytes", "--precision", each))
        for each in ("int8", "nf4", "fp4")
    ),
    PytorchRow(TorchPrecision.FP32, 4),
    PytorchRow(TorchPrecision.FP16, 2),
    PytorchRow(TorchPrecision.BF16, 2),
)


def first_rows() -> list[ExportedRow | PytorchRow]:
    """Return the first row of each family.

    >>> [(row.family, row.name) for row in first_rows()][2:]
    [('bitsandbytes', 'int8'), ('PyTorch', 'fp32')]
    """
    return list({row.family: row for row in reversed(ROWS)}.values())[::-1]

"""The rows of the matrix: every format at every precision, and how each is made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contender import Models
from benchmarks.peers.transformers_card import TorchPrecision


@dataclass(frozen=True, slots=True)
class Exported:
    """A row that is a pair: what `stepscore export` is asked for."""

    family: str
    name: str
    options: tuple[str, ...]

    def export(self, models: Models, output: Path) -> Path:
        """Run the command; Refused with what it says where it refuses.

        Its own fidelity is measured on one line: what is wanted here is measured otherwise.
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
            raise Refused(lines[-1][len("error: ") :] if lines else done.stderr[-200:])
        return output


@dataclass(frozen=True, slots=True)
class Loaded:
    """A row that is the checkpoints themselves, in PyTorch."""

    precision: TorchPrecision
    bytes_a_weight: int

    family = "PyTorch"

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return self.precision.value


class Refused(Exception):
    """An export said no."""


OURS, OPTIMUM, BITSANDBYTES = "ONNX (stepscore)", "ONNX (optimum)", "bitsandbytes"
CODED = ("--coding", "difference")
ROWS: tuple[Exported | Loaded, ...] = (
    *(Exported(OURS, each, ("--precision", each)) for each in ("fp32", "fp16", "bf16")),
    Exported(OURS, "int8 + int8, int8 activations", ("--precision", "int8", *CODED, "--activations", "int8")),
    Exported(OURS, "int8 + int4", ("--precision", "int8", *CODED, "--activations", "exact")),
    Exported(OURS, "int4 + int4", ("--precision", "int4", *CODED)),
    Exported(OPTIMUM, "fp32", ("--exporter", "optimum", "--precision", "fp32")),
    *(
        Exported(BITSANDBYTES, each, ("--format", "bitsandbytes", "--precision", each))
        for each in ("int8", "nf4", "fp4")
    ),
    Loaded(TorchPrecision.FP32, 4),
    Loaded(TorchPrecision.FP16, 2),
    Loaded(TorchPrecision.BF16, 2),
)

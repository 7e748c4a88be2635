"""Report of `stepscore parity`: facts for a person, JSON for a program, two plots."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from stepscore.artifact.manifest import MANIFEST, Source
from stepscore.engine.pytorch.loading import Device
from stepscore.enums import Coding, Convention, Precision, Provider
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore.jobs.provenance import RESULT_VERSION, Provenance
from stepscore.jobs.provenance_facts import provenance_facts
from stepscore.machine import Machine
from stepscore.tabular.table import Cell, Column, Fact, Table
from stepscore_export.fidelity import FidelityMetrics
from stepscore_export.parity.compare import Comparison
from stepscore_export.parity.plots import error_plot, reward_plot
from stepscore_export.parity.pytorch import DType

REPORT = "parity.json"


class PairSide(msgspec.Struct, frozen=True, kw_only=True):
    """The pair that was compared; tokens of a solution count once, although two models read them."""

    path: str
    fingerprint: str
    precision: Precision
    coding: Coding
    provider: Provider
    stepscore: str
    tokens_per_second: float


class PytorchSide(msgspec.Struct, frozen=True, kw_only=True):
    """PyTorch, which it was compared with; the speed is over the seconds of both models, without loading."""

    policy: Source
    reference: Source
    dtype: DType
    device: Device
    torch: str
    transformers: str
    tokens_per_second: float


class ParityReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="command", tag="parity"):
    """parity.json: fidelity of the pair with PyTorch's numbers as the truth; null is infinite.

    A first error is the first step whose reward is below `threshold`, chosen so that half of the solutions
    have one by PyTorch.
    """

    schema_version: int = RESULT_VERSION
    stepscore: Provenance
    pair: PairSide
    pytorch: PytorchSide
    data: str
    convention: Convention
    beta: float
    threshold: float
    num_lines: int
    left_out: dict[str, int]  # lines by the code of their error
    fidelity: FidelityMetrics
    machine: Machine

    def encode(self) -> bytes:
        """Return the bytes of parity.json."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def title(self) -> str:
        """Return what was compared with what, in one line."""
        pair, pytorch = self.pair, self.pytorch
        return f"stepscore {pair.precision} on {pair.provider} against {_pytorch_name(pytorch)}"

    def table(self) -> Table:
        """Return one row per figure."""
        pair, found = self.pair, self.fidelity
        of = "" if found.num_sequences == self.num_lines else f" of {self.num_lines:,}"
        same = _agreement(found.first_errors, found.num_sequences)
        rows = (
            _row("solutions compared", found.num_sequences, f"{found.num_sequences:,}{of}"),
            _row("steps compared", found.num_steps, f"{found.num_steps:,}"),
            _row("tokens compared", found.num_tokens, f"{found.num_tokens:,}"),
            _row("log-prob error, RMS", found.logprob_rms, f"{found.logprob_rms:.2g} nats"),
            _row("log-prob error, largest", found.logprob_max, f"{found.logprob_max:.2g} nats"),
            _row("log-ratio, RMS", found.ratio_rms, f"{found.ratio_rms:.2g} nats"),
            _row("log-ratio error", found.ratio_error, _percent(found.ratio_error)),
            _row("log-ratio correlation", found.correlation, f"{found.correlation:.6f}"),
            _row("step reward error", found.step_error, _percent(found.step_error)),
            _row("cumulative reward error", found.cumulative_error, _percent(found.cumulative_error)),
            _row("same sign of step reward", found.step_signs, _agreement(found.step_signs, found.num_steps)),
            _row("same first error", found.first_errors, f"{same} (first reward below {self.threshold:.2g})"),
            _row("tokens/s, stepscore", pair.tokens_per_second, f"{pair.tokens_per_second:,.0f}"),
            _row(
                "tokens/s, PyTorch",
                self.pytorch.tokens_per_second,
                f"{self.pytorch.tokens_per_second:,.0f} (one sequence at a time)",
            ),
        )
        rounded = self.pytorch.dtype is not DType.FP32
        return Table(
            title=self.title(),
            columns=(Column.of("figure", is_text=True), Column.of("value", is_text=True)),
            rows=rows,
            notes=("PyTorch's own rounding is part of every error above",) if rounded else (),
            facts=(*self._facts(), *self.machine.facts(), *provenance_facts(self.stepscore)),
        )

    def _facts(self) -> Iterator[Fact]:
        pair, pytorch = self.pair, self.pytorch
        yield Fact.of("path", "path", pair.path)
        yield Fact.of("precision", "precision", pair.precision.value)
        yield Fact.of("coding", "coding", pair.coding.value)
        yield Fact.of("provider", "provider", pair.provider.value)
        yield Fact.of("PyTorch", "pytorch", f"{pytorch.dtype} on {pytorch.device}")
        yield Fact.of("transformers", "transformers", pytorch.transformers)
        yield Fact.of("data", "data", self.data)


def check_output(folder: Path) -> None:
    """Raise OutputExists early, before anything is read."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExists(f"{folder} exists and is not a folder", hint="choose another --output")
    if (folder / MANIFEST).exists():
        raise OutputExists(f"{folder} is a pair, which must not change", hint="choose another --output")


def write_report(folder: Path, report: ParityReport, comparison: Comparison) -> None:
    """Write parity.json and the plots, each atomically; earlier ones are overwritten."""
    _write(
        folder,
        {
            REPORT: report.encode(),
            "log_ratio_error.svg": error_plot(comparison, report.title()),
            "step_rewards.svg": reward_plot(comparison, report.title()),
        },
    )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".parity-", dir=folder) as scratch:
            for name, data in files.items():
                (Path(scratch) / name).write_bytes(data)
            for name in files:
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write {folder}: {error.strerror or error}", hint="free space or choose another --output"
        ) from None


def _row(name: str, value: float, text: str) -> tuple[Cell, Cell]:
    return Cell.of(name), Cell.of(value, text)


def _pytorch_name(side: PytorchSide) -> str:
    return f"PyTorch {side.dtype} on {side.device}"


def _agreement(share: float, count: int) -> str:
    """Format the share of equals and the number of others.

    >>> _agreement(0.98, 50), _agreement(1.0, 50)
    ('98.00 %: 1 of 50 differs', '100.00 %: all 50')
    """
    others = round((1 - share) * count)
    if others == 0:
        return f"{share:.2%}: all {count:,}".replace("%", " %")
    return f"{share:.2%}: {others:,} of {count:,} differ{'s' if others == 1 else ''}".replace("%", " %")


def _percent(error: float) -> str:
    """Format a relative error: two decimals, or two digits where those would be zeros.

    >>> _percent(0.0603), _percent(4e-6), _percent(0.0), _percent(float("inf"))
    ('6.03 %', '0.0004 %', '0 %', "infinite: PyTorch's is 0")
    """
    if error == float("inf"):
        return "infinite: PyTorch's is 0"
    return f"{100 * error:.2f} %" if error >= 1e-3 else f"{100 * error:.2g} %"

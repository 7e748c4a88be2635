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
from stepscore.jobs.provenance import Provenance
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


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """parity.json: fidelity of the pair with PyTorch's numbers as the truth; null is infinite.

    A first error is the first step whose reward is below `threshold`, chosen so that half of the solutions
    have one by PyTorch.
    """

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

    def encode(self) -> bytes:
        """Return the bytes of parity.json."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def title(self) -> str:
        """Return what was compared with what, in one line."""
        pair, pytorch = self.pair, self.pytorch
        return f"stepscore {pair.precision} on {pair.provider} against {_pytorch_name(pytorch)}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Give names and values for a person."""
        pair, pytorch, found = self.pair, self.pytorch, self.fidelity
        yield "pair", f"{pair.path}: {pair.precision}, {pair.coding}, on {pair.provider}"
        yield "PyTorch", f"{pytorch.dtype} on {pytorch.device}, torch {pytorch.torch}"
        if pytorch.dtype is not DType.FP32:
            yield "", "PyTorch's own rounding is part of every error below"
        of = "" if found.num_sequences == self.num_lines else f" of {self.num_lines:,}"
        yield (
            "compared",
            f"{found.num_sequences:,}{of} solutions, {found.num_steps:,} steps, {found.num_tokens:,} tokens, "
            f"{self.convention} convention",
        )
        yield "log-prob error", f"{found.logprob_rms:.2g} nats RMS, at most {found.logprob_max:.2g}"
        yield "log-ratio error", f"{_percent(found.ratio_error)} of {found.ratio_rms:.2g} nats RMS"
        yield "log-ratio correlation", f"{found.correlation:.6f}"
        yield "step reward error", _percent(found.step_error)
        yield "cumulative reward error", _percent(found.cumulative_error)
        yield "same sign of step reward", _agreement(found.step_signs, found.num_steps)
        same = _agreement(found.first_errors, found.num_sequences)
        yield "same first error", f"{same} (first reward below {self.threshold:.2g})"
        yield (
            "speed",
            f"stepscore {pair.tokens_per_second:,.0f} tokens/s, "
            f"PyTorch {pytorch.tokens_per_second:,.0f} (one sequence at a time)",
        )


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

"""Pairs exported from random checkpoints, each once a test run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testing.checkpoints import TINY, write_checkpoint
from testing.shared_folder import SharedFolder, name_of

from stepscore.artifact.pair import Pair
from stepscore.enums import Coding, Precision, Target
from stepscore.records import Record
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS, Texts

ONE_TEXT = Texts(None, (Record("1 + 1?", ("1 + 1 = 2.", "So 2.")),))


def export_unmeasured(policy: Path, reference: Path, output: Path, options: ExportOptions) -> Pair:
    """Export a pair that is neither calibrated nor measured, most of an export's time."""
    return export_pair(policy, reference, output, options, texts=NO_TEXTS, calibration=NO_TEXTS)


@dataclass(frozen=True)
class Checkpoints:
    """A random reference and the policy: the same weights plus a difference of 1 %."""

    policy: Path
    reference: Path

    @classmethod
    def write(cls, folder: Path, shape: DecoderConfig = TINY) -> Checkpoints:
        """Write both below `folder`."""
        write_checkpoint(folder / "policy", shape, seed=1, perturb=0.01)
        write_checkpoint(folder / "reference", shape, seed=1)
        return cls.at(folder)

    @classmethod
    def at(cls, folder: Path) -> Checkpoints:
        """Return those that lie below `folder`."""
        return cls(folder / "policy", folder / "reference")


@dataclass(frozen=True)
class PairOf:
    """pair_of(precision, target): the folder of a pair, exported at the first request.

    Models are coded independently unless asked otherwise: pair_of(precision, coding=Coding.DIFFERENCE).
    The manifest has no fidelity: `measured` gives the same pairs with one.
    """

    checkpoints: Checkpoints
    shared: SharedFolder
    texts: Texts | None = NO_TEXTS

    def __call__(
        self, precision: Precision = Precision.FP32, target: Target = Target.CPU, **other: Any
    ) -> Path:
        options = {"coding": Coding.INDEPENDENT} | other
        return self.form(ExportOptions(precision=precision, target=target, **options))

    def form(self, options: ExportOptions) -> Path:
        """Return the pair that these options give."""
        name = f"pair-{options.precision}-{name_of(self.checkpoints, options, self.texts)}"
        return self.shared.once(name, self._export(options))

    @property
    def measured(self) -> PairOf:
        """The same pairs with their fidelity, measured on the bundled texts."""
        return replace(self, texts=None)

    def _export(self, options: ExportOptions) -> Callable[[Path], object]:
        models, texts = self.checkpoints, self.texts
        return lambda output: export_pair(
            models.policy, models.reference, output, options, texts=texts, calibration=NO_TEXTS
        )

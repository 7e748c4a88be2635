"""Every way of storing a pair that numbers are given for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from parity_tests.support.bundled_pair import THRESHOLD
from parity_tests.support.fp64_reference import num_matrix_weights

from stepscore.artifact.pair import Pair
from stepscore.enums import Activations, Coding, DifferencePrecision, Precision
from stepscore_export.options import ExportOptions
from stepscore_export.validation.texts import NO_TEXTS, Texts, calibration_texts, read_texts


@dataclass(frozen=True)
class Storage:
    """What an export is asked for; the base is calibrated on texts, which are not measured."""

    name: str
    options: ExportOptions
    calibration: Texts = NO_TEXTS

    def calibrated(self) -> Storage:
        """On the solutions that come with stepscore, as an export does by default."""
        return replace(self, name=f"{self.name}, calibrated", calibration=calibration_texts())

    def calibrated_alike(self) -> Storage:
        """On text of the kind that is measured, as a user's file may be."""
        return replace(self, name=f"{self.name}, calibrated alike", calibration=read_texts(THRESHOLD))

    def rotated(self, *, rotation: bool = True) -> Storage:
        """With the rotation, or without it, where an export would choose the other."""
        name = f"{self.name}, {'rotated' if rotation else 'not rotated'}"
        return replace(self, name=name, options=replace(self.options, rotation=rotation))

    def without_prefix(self) -> Storage:
        """The prefix of the template is computed with each record, as in version 0.1."""
        return replace(self, name=f"{self.name}, no prefix", options=replace(self.options, prefix=False))


def _coded(base: Precision, difference: DifferencePrecision) -> Storage:
    options = ExportOptions(
        base,
        coding=Coding.DIFFERENCE,
        difference_precision=difference,
        activations=Activations.EXACT,
    )
    return Storage(f"{base} + {difference}", options)


def _independent(precision: Precision) -> Storage:
    return Storage(f"{precision}, independent", ExportOptions(precision, coding=Coding.INDEPENDENT))


FP32, FP16, BF16 = (
    Storage(str(precision), ExportOptions(precision))
    for precision in (Precision.FP32, Precision.FP16, Precision.BF16)
)
INT8, INT4 = _independent(Precision.INT8), _independent(Precision.INT4)
INT8_INT4 = _coded(Precision.INT8, DifferencePrecision.INT4)
INT8_INT8 = _coded(Precision.INT8, DifferencePrecision.INT8)
INT8_INT2 = _coded(Precision.INT8, DifferencePrecision.INT2)
INT4_INT4 = _coded(Precision.INT4, DifferencePrecision.INT4)
INTEGER = Storage("int8 + int8, int8 activations", replace(INT8_INT8.options, activations=Activations.INT8))

UNCODED = (FP32, FP16, BF16, INT8, INT4)
CODED = (INT8_INT4, INT8_INT8, INTEGER, INT8_INT2, INT4_INT4)


def bits_a_pair(pair: Pair, reference: Path) -> float:
    """Bits of codes stored for one weight of the policy and the same of the reference.

    Over the matrices of the layers and the head, as the graphs of the pair name their bytes; scales and
    zero points do not count, columns that fill up a block do. `reference` is the checkpoint, which says how
    many weights there are.
    """
    stored = sum(_matrix_bytes(pair.path / unit.folder) for unit in pair.manifest.units)
    return 8 * stored / num_matrix_weights(reference)


def _matrix_bytes(unit: Path) -> int:
    """A tied head names the embedding's bytes, and may name them in parts."""
    lengths: dict[int, int] = {}  # by offset into the weight file
    for name in ("body.onnx", "head.onnx"):
        for tensor in onnx.load(unit / name, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            is_matrix = len(tensor.dims) > 1 and not re.search(r"^rotary\.|\.scales|\.zeros", tensor.name)
            if where and is_matrix:
                lengths[int(where["offset"])] = int(where["length"])
    return sum(lengths.values())

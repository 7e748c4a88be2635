"""Provide the GPTQ error propagation of each matrix of a model, in the order in which weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stepscore_export.quantization.rounding import Floats


@dataclass(frozen=True, slots=True)
class LayerErrorPropagation:
    """Error propagation of a layer's matrices by input (`Hessian.error_propagation`); None if unknown."""

    qkv: Floats | None = None
    output: Floats | None = None
    mlp: Floats | None = None
    down: Floats | None = None


class Statistics(Protocol):
    """Statistics of the activations of a model, requested in the order in which weights are stored."""

    def layer(self, index: int) -> LayerErrorPropagation:
        """Return the error propagation of one layer; layers are requested in ascending order."""
        ...

    def head(self) -> Floats | None:
        """Return the error propagation of the head; requested after the last layer."""
        ...


class NoStatistics:
    """No calibration: weights are rounded to the nearest code."""

    def layer(self, index: int) -> LayerErrorPropagation:
        """Return no error propagation."""
        return LayerErrorPropagation()

    def head(self) -> Floats | None:
        """Return no error propagation."""
        return None

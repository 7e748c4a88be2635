"""How rounding errors spread over the inputs of each matrix (feedback.py), as an export asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stepscore_export.quantization.rounding import Floats


@dataclass(frozen=True, slots=True)
class LayerErrorPropagation:
    """The spread of a layer's matrices by what they read (feedback.Moments.spread), None if unknown."""

    qkv: Floats | None = None
    output: Floats | None = None
    mlp: Floats | None = None
    down: Floats | None = None


class Statistics(Protocol):
    """What is known of a model's inputs, asked for in the order in which weights are stored."""

    def layer(self, index: int) -> LayerErrorPropagation:
        """Return the spread of one layer; layers are asked for one after the other."""
        ...

    def head(self) -> Floats | None:
        """Return the spread of the head; asked for after the last layer."""
        ...


class NoStatistics:
    """Nothing is known: everything is rounded to the nearest code."""

    def layer(self, index: int) -> LayerErrorPropagation:
        """Return nothing."""
        return LayerErrorPropagation()

    def head(self) -> Floats | None:
        """Return nothing."""
        return None

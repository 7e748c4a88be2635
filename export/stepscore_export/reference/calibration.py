"""What enters the matrices of the reference on a user's own text: second moments, a layer at a time.

The reference is run exactly beside the export, one layer ahead of it, so that no more than the moments of one
layer are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.prefix import ModelPrefix
from stepscore.batching.given_rows import GivenRows
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.graphs.decoder import INTERMEDIATE_OUTPUTS
from stepscore_export.quantization.error_propagation import LayerErrorPropagation
from stepscore_export.quantization.gptq import Hessian, group_of
from stepscore_export.quantization.rounding import Floats
from stepscore_export.reference.layerwise_fp32 import ExactModel, Rows

MAX_TOKENS = 20_000  # of the calibration text: more change nothing


class Calibration:
    """Statistics of the reference over token sequences."""

    def __init__(
        self,
        reference: WeightSource,
        sequences: Sequence[NDArray[np.int64]],
        scratch: Path,
        block_size: int,
        given: tuple[GivenRows, ModelPrefix] | None = None,
    ) -> None:
        self._block_size = block_size
        self._model = ExactModel(reference, sequences, scratch, given=given)

    def layer(self, index: int) -> LayerErrorPropagation:
        """Run layer `index`, which must be the next one."""
        moments: dict[str, Hessian] = {}

        def on_input(name: str, rows: Rows) -> None:
            if name not in moments:
                moments[name] = self._hessian(rows)
            moments[name].add(rows)

        self._model.run_next_layer(on_input)
        return LayerErrorPropagation(*(moments[name].spread() for name in INTERMEDIATE_OUTPUTS))

    def _hessian(self, rows: Rows) -> Hessian:
        columns = rows.shape[1]
        return Hessian(columns, group_of(columns, self._block_size))

    def head(self) -> Floats:
        """Return the spread of the head's inputs."""
        moments: Hessian | None = None
        for rows in self._model.hidden():
            moments = moments or self._hessian(rows)
            moments.add(rows)
        assert moments is not None  # there is at least one sequence
        return moments.spread()

"""Collect the Hessians of the reference's activations on calibration text, layer by layer, for GPTQ.

The reference runs in fp32 in step with the export: a layer runs right before its weights are stored, so that
only the Hessians of one layer are held. Rotated weights are rounded to bf16 for it.
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


class Calibration:
    """Error propagation of the reference's matrices, from its activations on token sequences [L]."""

    def __init__(
        self,
        reference: WeightSource,
        sequences: Sequence[NDArray[np.int64]],
        scratch: Path,
        block_size: int,
        given: tuple[GivenRows, ModelPrefix] | None = None,
    ) -> None:
        self._block_size = block_size
        self._model = ExactModel(reference, sequences, scratch, given=given, half=True)

    def layer(self, index: int) -> LayerErrorPropagation:
        """Run layer `index`, which must be the next one, and return its error propagation."""
        moments: dict[str, Hessian] = {}

        def on_input(name: str, rows: Rows) -> None:
            if name not in moments:
                moments[name] = self._hessian(rows)
            moments[name].add(rows)

        self._model.run_next_layer(on_input)
        return LayerErrorPropagation(
            *(moments.pop(name).error_propagation() for name in INTERMEDIATE_OUTPUTS)
        )

    def _hessian(self, rows: Rows) -> Hessian:
        columns = rows.shape[1]
        return Hessian(columns, group_of(columns, self._block_size))

    def head(self) -> Floats:
        """Return the error propagation of the head, from the final hidden states."""
        moments: Hessian | None = None
        for rows in self._model.hidden():
            moments = moments or self._hessian(rows)
            moments.add(rows)
        assert moments is not None  # there is at least one sequence
        return moments.error_propagation()

"""Collect the Hessians of the reference's activations on calibration text, layer by layer, for GPTQ.

The reference runs in fp32 in step with the export: a layer runs right before its weights are stored, so that
only the Hessians of one layer are held. Rotated weights of a large layer are rounded to bf16 for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.prefix import ModelPrefix
from stepscore.batching.given_rows import GivenRows
from stepscore.system import give_back_memory
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.families.base import DecoderConfig, tensor_shapes
from stepscore_export.graphs.decoder import INTERMEDIATE_OUTPUTS
from stepscore_export.quantization.error_propagation import LayerErrorPropagation
from stepscore_export.quantization.gptq import Hessian, group_of
from stepscore_export.quantization.rounding import Floats
from stepscore_export.reference.layerwise_fp32 import BATCH_ROWS, LARGEST_FP32_LAYER, ExactModel, Rows
from stepscore_export.threads import WORKERS

# Multiplications and additions of the reference's layers, and weights rounded with feedback, per second on
# two cores (benchmarks/results/full_size_1_layers_export.json).
OPERATIONS_PER_SECOND = 150e9
WEIGHTS_PER_SECOND = 25e6
ARRAYS = 6  # of [BATCH_ROWS, intermediate_size] that are alive in a layer
DENSE_COPIES = 4  # float64 matrices of a group that are alive while its Hessian is inverted


@dataclass(frozen=True, slots=True)
class CalibrationEstimate:
    """What a calibration adds to an export: bytes that it holds at most, and seconds."""

    memory_bytes: int
    seconds: float


def estimate_calibration(config: DecoderConfig, tokens: int, block_size: int) -> CalibrationEstimate:
    """Predict a calibration on this many tokens, roughly; the base of every matrix is rounded with feedback.

    The Hessians of a layer's four inputs are held while the layer runs, with its weights, the hidden states
    of all tokens, what a batch computes and what it adds to a Hessian; then the largest is inverted.
    """
    sizes = {name: math.prod(shape) for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    hidden, inputs = config.hidden_size, config.num_attention_heads * config.head_dim
    groups = [
        (-(-columns // group), group)
        for columns in (hidden, inputs, hidden, config.intermediate_size)
        for group in [group_of(columns, block_size)]
    ]
    moments = sum(4 * count * group**2 for count, group in groups)
    states, batch = (
        4 * tokens * hidden,
        4 * ARRAYS * BATCH_ROWS * config.intermediate_size,
    )
    weights = 4 * layer
    if weights > LARGEST_FP32_LAYER:  # then 16 bits, and the matrix that is being used
        weights = 2 * layer + 4 * hidden * config.intermediate_size
    added = max(4 * group**2 for _, group in groups)
    inverse = max(8 * DENSE_COPIES * min(count, WORKERS) * group**2 for count, group in groups)
    operations = 2 * tokens * (layer + sum(count * group**2 for count, group in groups))
    rounded = layer * config.num_hidden_layers + hidden * config.vocab_size
    return CalibrationEstimate(
        moments + states + max(weights + batch + added, inverse),
        config.num_hidden_layers * operations / OPERATIONS_PER_SECOND + rounded / WEIGHTS_PER_SECOND,
    )


class Calibration:
    """Error propagation of the reference's matrices, from its activations on token sequences [L]."""

    def __init__(
        self,
        reference: WeightSource,
        sequences: Sequence[NDArray[np.int64]],
        block_size: int,
        given: tuple[GivenRows, ModelPrefix] | None = None,
    ) -> None:
        self._block_size = block_size
        self._model = ExactModel(reference, sequences, given=given, half=True)

    def layer(self, index: int) -> LayerErrorPropagation:
        """Run layer `index`, which must be the next one, and return its error propagation."""
        give_back_memory()  # of the layer before, most of it freed by other threads
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

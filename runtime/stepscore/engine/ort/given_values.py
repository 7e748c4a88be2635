"""The given rows of a unit as inputs of its graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import GIVEN_HIDDEN, given_name, stream_names
from stepscore.artifact.manifest import Architecture, ModelName
from stepscore.artifact.prefix import ModelPrefix, Prefix
from stepscore.batching.batch import Batch
from stepscore.engine.ort.binding import Values

_BFLOAT16 = 16
"""ONNX's number of the type, which numpy does not have."""


class GivenValues:
    """Keys, values and hidden rows of the prefix, in the types that graphs read; empty without a prefix."""

    def __init__(
        self, models: Sequence[ModelName], prefix: Prefix | None, shape: Architecture, device: str
    ) -> None:
        self._models = models
        self._device = device
        self._num_rows = 0 if prefix is None else len(prefix.token_ids)
        width = 2 * shape.num_key_value_heads * shape.head_dim
        none = ModelPrefix.empty(shape.num_hidden_layers, width, shape.hidden_size)
        of_model = {name: none if prefix is None else prefix.models[name] for name in models}
        self._of_model = of_model
        self._arrays: dict[str, NDArray[np.float32]] = {}
        for layer in range(shape.num_hidden_layers):
            for input_name, name in zip(stream_names(given_name(layer), models), models, strict=True):
                self._arrays[input_name] = of_model[name].keys_values[layer]
        self._hidden = dict(zip(stream_names(GIVEN_HIDDEN, models), models, strict=True))
        self._kept: dict[tuple[str, int], ort.OrtValue] = {}

    def inputs(self, session: ort.InferenceSession, batch: Batch) -> Values:
        """Return what a graph reads of the rows that are given to a batch."""
        values: Values = {}
        for each in session.get_inputs():
            if each.name in self._arrays:
                values[each.name] = self._keys_values(each.name, each.type, batch.num_given)
            elif each.name in self._hidden:
                hidden = self._of_model[self._hidden[each.name]].hidden[batch.given_scored]
                values[each.name] = _value(hidden, each.type, "cpu")
        return values

    def logprobs(self, model: ModelName, batch: Batch) -> NDArray[np.float32]:
        """Return the log-probs (nats) of the given rows' own tokens, float32 [g]."""
        return self._of_model[model].logprobs[: batch.num_given]

    def _keys_values(self, name: str, kind: str, num_rows: int) -> ort.OrtValue:
        if num_rows not in {0, self._num_rows}:
            raise ValueError(
                f"the batch was planned with {num_rows} given rows, the pair has {self._num_rows}"
            )
        key = name, num_rows
        if key not in self._kept:
            self._kept[key] = _value(self._arrays[name][:num_rows], kind, self._device)
        return self._kept[key]


def _value(array: NDArray[np.float32], kind: str, device: str) -> ort.OrtValue:
    """Return float32 rows as a value of a graph's type; bfloat16 is rounded to nearest even."""
    array = np.ascontiguousarray(array)
    if kind == "tensor(bfloat16)":
        bits = array.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(rounded.astype(np.uint16), _BFLOAT16)
    typed = array.astype(np.float16 if kind == "tensor(float16)" else np.float32)
    return ort.OrtValue.ortvalue_from_numpy(typed, device)

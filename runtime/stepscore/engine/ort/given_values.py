"""The given rows of a unit as inputs of its graphs, and its kept rows as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import (
    GIVEN_HIDDEN,
    HIDDEN,
    KEPT_INDEX,
    given_name,
    kept_name,
    stream_names,
)
from stepscore.artifact.manifest import Architecture, ModelName
from stepscore.batching.batch import Batch
from stepscore.batching.kept_prefixes import Keeping
from stepscore.engine.base import PairLogprobs
from stepscore.engine.element_types import BFLOAT16, in_type
from stepscore.engine.ort.binding import Values, as_numpy
from stepscore.engine.row_values import RowValues

_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": BFLOAT16}


class GivenValues:
    """Binds rows of `rows`, which are float32, to the inputs and outputs of a unit's graphs."""

    def __init__(
        self, models: Sequence[ModelName], rows: RowValues, shape: Architecture, device: str
    ) -> None:
        self._models = models
        self._rows = rows
        self._device = device
        self._inputs, self._outputs = (
            {
                name: (model, layer)
                for layer in range(shape.num_hidden_layers)
                for name, model in zip(stream_names(name_of(layer), models), models, strict=True)
            }
            for name_of in (given_name, kept_name)
        )
        self._hidden = dict(zip(stream_names(GIVEN_HIDDEN, models), models, strict=True))
        self._permanent: dict[tuple[str, int], ort.OrtValue] = {}

    def inputs(self, session: ort.InferenceSession, batch: Batch) -> Values:
        """Return what a graph reads of the rows that are given to a batch."""
        values: Values = {}
        for each in session.get_inputs():
            if each.name in self._inputs:
                values[each.name] = self._keys_values(each.name, each.type, batch.given_rows)
            elif each.name in self._hidden:
                rows = batch.given_rows[batch.given_scored]
                hidden = self._rows.hidden(self._hidden[each.name], rows)
                values[each.name] = _value(hidden, each.type, "cpu")
        return values

    def logprobs(self, model: ModelName, batch: Batch) -> NDArray[np.float32]:
        """Return the log-probs (nats) of the given rows' own tokens, float32 [g]."""
        return self._rows.logprobs(model, batch.given_rows)

    def keep(self, outputs: Values, keeping: Keeping) -> None:
        """Store the kept rows among the outputs of a graph."""
        for name, value in outputs.items():
            if name in self._outputs:
                model, layer = self._outputs[name]
                self._rows.of_model[model].keys_values[layer, keeping.slots] = as_numpy(value)

    def keep_results(self, hidden: Values, logprobs: PairLogprobs, keeping: Keeping) -> None:
        """Store hidden states and log-probs of rows."""
        for name, model in zip(stream_names(HIDDEN, self._models), self._models, strict=True):
            rows = self._rows.of_model[model]
            rows.hidden[keeping.hidden_rows] = as_numpy(hidden[name])[keeping.hidden]
            rows.logprobs[keeping.logprob_rows] = logprobs[model][keeping.logprobs]

    def _keys_values(self, name: str, kind: str, rows: NDArray[np.int64]) -> ort.OrtValue:
        permanent = not len(rows) or rows[-1] < self._rows.num_permanent  # ascending, from 0 on
        key = name, len(rows)
        if permanent and key in self._permanent:
            return self._permanent[key]
        model, layer = self._inputs[name]
        value = _value(self._rows.keys_values(model, layer, rows), kind, self._device)
        if permanent:
            self._permanent[key] = value
        return value


def kept_index(keeping: Keeping | None, names: set[str]) -> Mapping[str, NDArray[Any]]:
    """Return the input that says which rows are kept, for a graph with these inputs; none: no row is."""
    return {KEPT_INDEX: keeping.computed} if keeping is not None and KEPT_INDEX in names else {}


def _value(array: NDArray[Any], kind: str, device: str) -> ort.OrtValue:
    """Return float32 rows as a value of a graph's type; bfloat16 is rounded to nearest even."""
    typed = in_type(array, _TYPES[kind])
    if typed.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(typed, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(typed, device)

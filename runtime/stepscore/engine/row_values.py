"""The values of given rows in host memory: what both models make of the prefix, and of rows that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import Architecture, ModelName
from stepscore.artifact.prefix import ModelPrefix, Prefix
from stepscore.batching.trie import Int64
from stepscore.engine.element_types import FLOAT, in_type


@dataclass(frozen=True, slots=True)
class ModelRows:
    """What one model makes of R rows: `keys_values` [layers, R, 2 * kv_heads * head_dim], `hidden` [R, H].

    Both are in the type of the graphs, bfloat16 as uint16; `logprobs` are float32 [R], nats.
    """

    keys_values: NDArray[np.generic]
    hidden: NDArray[np.generic]
    logprobs: NDArray[np.float32]


class RowValues:
    """The rows of the pair's prefix, none without one, and behind them `num_slots` that are written."""

    def __init__(
        self,
        models: Sequence[ModelName],
        prefix: Prefix | None,
        shape: Architecture,
        num_slots: int = 0,
        compute: int = FLOAT,
    ) -> None:
        width = 2 * shape.num_key_value_heads * shape.head_dim
        none = ModelPrefix.empty(shape.num_hidden_layers, width, shape.hidden_size)
        self.width = width
        self.num_permanent = 0 if prefix is None else len(prefix.token_ids)
        self.compute = compute
        self.of_model: Mapping[ModelName, ModelRows] = {
            name: _with_slots(none if prefix is None else prefix.models[name], num_slots, compute)
            for name in models
        }

    def keys_values(self, model: ModelName, layer: int, rows: Int64) -> NDArray[np.generic]:
        """Return a copy of the keys and values of rows, [g, 2 * kv_heads * head_dim]."""
        return np.take(self.of_model[model].keys_values[layer], rows, axis=0)

    def hidden(self, model: ModelName, rows: Int64) -> NDArray[np.generic]:
        """Return a copy of the hidden states of rows, [k, H]."""
        return np.take(self.of_model[model].hidden, rows, axis=0)

    def logprobs(self, model: ModelName, rows: Int64) -> NDArray[np.float32]:
        """Return the log-probs (nats) of the rows' own tokens, float32 [g]."""
        return self.of_model[model].logprobs[rows]


def _with_slots(prefix: ModelPrefix, num_slots: int, compute: int) -> ModelRows:
    """Return arrays with room behind the prefix; the system gives pages of it as they are written."""
    keys_values, hidden = (in_type(each, compute) for each in (prefix.keys_values, prefix.hidden))
    if not num_slots:
        return ModelRows(keys_values, hidden, prefix.logprobs)
    layers, known, width = keys_values.shape
    rows = ModelRows(
        np.empty((layers, known + num_slots, width), keys_values.dtype),
        np.empty((known + num_slots, hidden.shape[1]), hidden.dtype),
        np.empty(known + num_slots, np.float32),
    )
    rows.keys_values[:, :known], rows.hidden[:known], rows.logprobs[:known] = (
        keys_values,
        hidden,
        prefix.logprobs,
    )
    return rows

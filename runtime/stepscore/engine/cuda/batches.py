"""The batches of a window on the device: indices, given rows, hidden states, log-probs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.artifact.generic_graphs import GIVEN
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.artifact.prefix import ModelPrefix
from stepscore.batching.batch import Batch, chunks
from stepscore.engine.cuda.device import Device, Tensor
from stepscore.engine.cuda.hardware import Hardware
from stepscore.engine.element_types import ONNX_TYPES, in_type

Inputs = dict[str, Tensor | NDArray[Any]]
_INT32, _INT64 = ONNX_TYPES["int32"], ONNX_TYPES["int64"]


class GivenValues:
    """What models make of the prefix, on the device: keys and values of every layer, hidden rows."""

    def __init__(self, of_model: Mapping[ModelName, ModelPrefix], hardware: Hardware) -> None:
        self._of_model = of_model
        self._device, self._compute = hardware.device, hardware.compute
        self._keys_values = {
            name: self._device.put(in_type(each.keys_values, self._compute), self._compute)
            for name, each in of_model.items()
        }

    @classmethod
    def of(cls, pair: Pair, models: Sequence[ModelName], hardware: Hardware) -> GivenValues:
        """Return those of the models of a unit; of no rows where the pair has no prefix."""
        prefix, shape = pair.prefix(), pair.manifest.architecture
        width = 2 * shape.num_key_value_heads * shape.head_dim
        none = ModelPrefix.empty(shape.num_hidden_layers, width, shape.hidden_size)
        return cls({name: none if prefix is None else prefix.models[name] for name in models}, hardware)

    def keys_values(self, model: ModelName, layer: int, num_rows: int) -> Inputs:
        """Return the input GIVEN of a layer."""
        of_layers = self._keys_values[model]
        layers, known, width = of_layers.shape
        if num_rows not in {0, known}:
            raise ValueError(f"the batch was planned with {num_rows} given rows, the pair has {known}")
        start = layer * known
        return {GIVEN: of_layers.viewed(layers * known, width).rows(start, start + num_rows)}

    def hidden(self, model: ModelName, batch: Batch) -> Inputs:
        """Return the input GIVEN_HIDDEN of the last layer."""
        rows = in_type(self._of_model[model].hidden[batch.given_scored], self._compute)
        return {contract.GIVEN_HIDDEN: self._device.put(rows, self._compute)}

    def logprobs(self, model: ModelName, batch: Batch) -> NDArray[np.float32]:
        """Return the log-probs (nats) of the given rows' own tokens, float32 [g]."""
        return self._of_model[model].logprobs[: batch.num_given]


@dataclass(frozen=True, slots=True)
class HeadChunk:
    """Scored rows of a batch that the head reads at once, and the targets among them."""

    part: slice
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """A batch whose indices are on the device: they are the same for every layer and both models."""

    batch: Batch
    indices: Inputs
    scored: Inputs
    """The index of the last layer."""
    chunks: Sequence[HeadChunk]

    @classmethod
    def of(cls, batch: Batch, device: Device, head_rows: int) -> LoadedBatch:
        """Copy the indices of a batch to the device."""
        feeds = batch.feeds(
            {contract.PAD_INDEX, contract.UNPAD_INDEX, contract.SEQLENS_K, contract.TOTAL_SEQUENCE_LENGTH}
        )
        length = feeds.pop(contract.TOTAL_SEQUENCE_LENGTH)  # attention reads it on the host
        indices: Inputs = {name: _put(device, array) for name, array in feeds.items()}
        parts = []
        for part, rows, targets in chunks(batch, head_rows):
            inputs: Inputs = {
                contract.CHUNK_ROWS: _put(device, rows),
                contract.TARGETS: _put(device, targets),
            }
            parts.append(HeadChunk(part, inputs))
        scored: Inputs = {contract.SCORE_INDEX: _put(device, batch.score_index)}
        return cls(batch, indices | {contract.TOTAL_SEQUENCE_LENGTH: length}, scored, parts)


def _put(device: Device, array: NDArray[Any]) -> Tensor:
    return device.put(array, _INT32 if array.dtype == np.int32 else _INT64)


def cut(tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Cut rows into consecutive parts of these lengths."""
    ends = np.cumsum(lengths)
    return [tensor.rows(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]

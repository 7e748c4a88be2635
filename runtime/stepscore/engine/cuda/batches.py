"""The batches of a window on the device: indices, given rows, hidden states, log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import graph_contract as contract
from stepscore.artifact.generic_graphs import GIVEN
from stepscore.artifact.manifest import ModelName
from stepscore.batching.batch import NO_INDEX, Batch, chunks
from stepscore.batching.kept_prefixes import Keeping
from stepscore.engine.cuda.device import Device, Tensor
from stepscore.engine.cuda.hardware import Hardware
from stepscore.engine.element_types import BITS, ONNX_TYPES, in_type
from stepscore.engine.row_values import RowValues

Inputs = dict[str, Tensor | NDArray[Any]]
_INT32, _INT64 = ONNX_TYPES["int32"], ONNX_TYPES["int64"]


class GivenValues:
    """Given rows of a unit on the device: those of the prefix stay there, others are copied for each batch.

    Kept rows are in host memory: a batch's are a small part of it, and the GPU's is for weights.
    """

    def __init__(self, rows: RowValues, hardware: Hardware) -> None:
        self._rows = rows
        self._device, self._copies = hardware.device, hardware.copies
        self._compute = hardware.compute
        prefix = np.arange(rows.num_permanent)
        self._permanent = {
            name: [
                self._device.put(rows.keys_values(name, layer, prefix), self._compute)
                for layer in range(len(each.keys_values))
            ]
            for name, each in rows.of_model.items()
        }

    def keys_values(self, model: ModelName, layer: int, batch: Batch) -> Inputs:
        """Return the input GIVEN of a layer."""
        rows = batch.given_rows
        if not len(rows) or rows[-1] < self._rows.num_permanent:  # ascending, from 0 on
            return {GIVEN: self._permanent[model][layer].rows(0, len(rows))}
        return {GIVEN: self._device.put(self._rows.keys_values(model, layer, rows), self._compute)}

    def hidden(self, model: ModelName, batch: Batch) -> Inputs:
        """Return the input GIVEN_HIDDEN of the last layer."""
        rows = self._rows.hidden(model, batch.given_rows[batch.given_scored])
        return {contract.GIVEN_HIDDEN: self._device.put(rows, self._compute)}

    def logprobs(self, model: ModelName, batch: Batch) -> NDArray[np.float32]:
        """Return the log-probs (nats) of the given rows' own tokens, float32 [g]."""
        return self._rows.logprobs(model, batch.given_rows)

    def output(self, keeping: Keeping) -> Tensor:
        """Return a tensor for the output KEPT of a layer, to be given back."""
        width = self._rows.width
        num_bytes = len(keeping.computed) * width * BITS[self._compute] // 8
        buffer = self._device.allocate(num_bytes)
        return buffer.tensor((len(keeping.computed), width), self._compute)

    def keep(self, model: ModelName, layer: int, output: Tensor, keeping: Keeping) -> None:
        """Store the kept rows of a layer."""
        values = in_type(self._copies.read(output), self._compute)
        self._rows.of_model[model].keys_values[layer, keeping.slots] = values

    def keep_results(
        self, model: ModelName, hidden: Tensor, logprobs: NDArray[np.float32], keeping: Keeping
    ) -> None:
        """Store hidden states [k + m, H] and log-probs [g + t] of rows."""
        rows = self._rows.of_model[model]
        found = self._copies.read(hidden)[keeping.hidden]
        rows.hidden[keeping.hidden_rows] = in_type(found, self._compute)
        rows.logprobs[keeping.logprob_rows] = logprobs[keeping.logprobs]


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
    kept_index: Inputs
    """The index of every layer that keeps rows."""
    keeping: Keeping | None

    @classmethod
    def of(cls, batch: Batch, keeping: Keeping | None, device: Device, head_rows: int) -> LoadedBatch:
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
        kept = NO_INDEX if keeping is None else keeping.computed
        kept_index: Inputs = {contract.KEPT_INDEX: _put(device, kept)}
        indices[contract.TOTAL_SEQUENCE_LENGTH] = length
        return cls(batch, indices, scored, parts, kept_index, keeping)


def _put(device: Device, array: NDArray[Any]) -> Tensor:
    return device.put(array, _INT32 if array.dtype == np.int32 else _INT64)


def cut(tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Cut rows into consecutive parts of these lengths."""
    ends = np.cumsum(lengths)
    return [tensor.rows(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]

"""Run both checkpoints in fp32, layer by layer: the ground truth for the fidelity of a pair.

Neither model has to fit into memory. The exporter's own graphs run on ONNX Runtime's CPU provider in fp32,
with the weights of one layer as inputs; between two layers only the hidden states of all tokens are held. The
head is computed from the checkpoint directly; logits are materialized for one block of the vocabulary at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.generic_graphs import KEPT
from stepscore.artifact.graph_contract import GIVEN_HIDDEN, ROWS, given_name
from stepscore.artifact.prefix import ModelPrefix
from stepscore.batching.batch import Batch, BatchGroup
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.batching.planner import plan
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Precision, Provider
from stepscore.errors import CheckpointCorrupt
from stepscore_export.checkpoint.weight_source import Members, WeightSource
from stepscore_export.families.base import EMBEDDING, FINAL_NORM, tensor_shapes
from stepscore_export.fidelity import Floats, Scores
from stepscore_export.graphs.builder import with_weights_as_inputs
from stepscore_export.graphs.decoder import (
    INTERMEDIATE_OUTPUTS,
    layer_graph,
    layer_graph_with_intermediate_outputs,
)
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.options import ExportOptions
from stepscore_export.threads import in_order
from stepscore_export.weights.row_blocks import BLOCK_ELEMENTS, Advance
from stepscore_export.weights.weight_file import InMemory
from stepscore_export.weights.writer import UnitWriter

BATCH_ROWS = 512
"""Maximum tokens in one run of a layer, which bounds its activations; a longer sequence runs alone."""
LARGEST_FP32_LAYER = 512 * 1024**2
"""Bytes up to which a layer is held as fp32; beyond, in 16 bits, which every batch converts again."""

Rows = NDArray[np.float32]
OnInput = Callable[[str, Rows], None]
"""Called with the name of an intermediate output (INTERMEDIATE_OUTPUTS) and activations [n, K]."""

Weights = dict[str, NDArray[Any]]

Given = Callable[[Batch, Collection[str]], dict[str, Rows]]
"""Gives what a layer reads of the rows given to a batch, for a graph with these inputs."""

_PRECISIONS = MappingProxyType(
    {
        np.dtype(np.float32): Precision.FP32,
        np.dtype(np.float16): Precision.FP16,
        np.dtype(ml_dtypes.bfloat16): Precision.BF16,
    }
)


def fp32_logprobs(
    policy: WeightSource,
    reference: WeightSource,
    sequences: Sequence[NDArray[np.int64]],
    progress: Advance = lambda _count: None,
) -> Scores:
    """Return policy's and reference's log-probs [L-1] (nats) of each sequence [L], L >= 2.

    The models run one after the other, so that memory usage is that of one model. `progress` is called for
    the matrices of all layers and of the head.
    """
    of_policy, of_reference = (
        ExactModel(checkpoint, sequences, progress).logprobs() for checkpoint in (policy, reference)
    )
    return list(zip(of_policy, of_reference, strict=True))


@dataclass(slots=True)
class _Part:
    """A batch of packed sequences and its current hidden states: [n, H].

    After the last layer they are [m, H], normed but not scaled.
    """

    group: BatchGroup
    rows: Rows


class ExactModel:
    """Run one checkpoint in fp32, layer by layer, on packed token sequences.

    With `half` the weights of a large layer that are no 16-bit numbers are rounded to bf16, which halves its
    memory: for statistics, not for a truth.
    """

    def __init__(
        self,
        checkpoint: WeightSource,
        sequences: Sequence[NDArray[np.int64]],
        progress: Advance = lambda _count: None,
        given: tuple[GivenRows, ModelPrefix] | None = None,
        *,
        half: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._half = half
        self._progress = progress
        self._next_layer = 0
        self._failed = False
        self._members: Members = {"reference": checkpoint}  # either model: a unit of one names none
        self._rotary_tables = InMemory()
        options = ExportOptions(Precision.FP32)
        self._rotary = UnitWriter(self._members, self._rotary_tables, options, progress).rotary()
        # No prefix sharing: `on_input` must see every occurrence of a token.
        config = checkpoint.config
        width = 2 * config.num_key_value_heads * config.head_dim
        none = ModelPrefix.empty(config.num_hidden_layers, width, config.hidden_size)
        rows, self._prefix = given or (NO_ROWS, none)
        groups = plan(sequences, [0] * len(sequences), BATCH_ROWS, share=False, given=rows)
        self._parts = [_Part(group, _embedded(checkpoint, group.batch.input_ids)) for group in groups]

    def run_next_layer(self, on_input: OnInput | None = None) -> None:
        """Run the next layer; raises IndexError after the last one.

        `on_input` is called with the inputs of the layer's matrices, named as in INTERMEDIATE_OUTPUTS, once
        per batch.
        """
        if self._next_layer == self._checkpoint.config.num_hidden_layers:
            raise IndexError(f"all {self._next_layer} layers have run")
        if self._failed:
            raise RuntimeError(
                f"layer {self._next_layer} failed: some batches have passed it, others have not"
            )
        self._failed = True
        graph, weights = self._layer(self._next_layer, observed=on_input is not None)
        self._checkpoint.read_ahead(self._names_after(self._next_layer))
        _run_layer(graph, weights, self._parts, self._given(self._next_layer), on_input)
        self._failed = False
        self._next_layer += 1

    def logprobs(self) -> list[Floats]:
        """Run the remaining layers and the head; return the log-probs [L-1] (nats) of each sequence."""
        with np.errstate(over="ignore", invalid="ignore"):
            parts = self._head(list(self.hidden()))
        if not all(np.isfinite(logprobs).all() for logprobs in parts):
            with self._checkpoint.naming():
                raise CheckpointCorrupt(
                    f"{self._checkpoint.source.name} gives log-probs that are NaN or infinite in fp32",
                    hint="its training diverged or its files are damaged; use another revision",
                )
        scores = {
            member: np.concatenate([self._prefix.logprobs[: part.group.batch.num_given], logprobs])[pairs]
            for part, logprobs in zip(self._parts, parts, strict=True)
            for member, pairs in zip(part.group.members, part.group.batch.target_of, strict=True)
        }
        return [scores[index] for index in range(len(scores))]

    def hidden(self) -> Iterator[Rows]:
        """Run the remaining layers; return the hidden states [m, H] that enter the head, batch by batch."""
        scale = self._checkpoint.rows(FINAL_NORM)
        return (rows * scale for rows in self.normed())

    def normed(self) -> Iterator[Rows]:
        """Run the remaining layers; return their rows [m, H], normed but not scaled, batch by batch."""
        while self._next_layer < self._checkpoint.config.num_hidden_layers:
            self.run_next_layer()
        return (part.rows for part in self._parts)

    def _given(self, layer: int) -> Given:
        prefix = self._prefix

        def inputs(batch: Batch, names: Collection[str]) -> dict[str, Rows]:
            keys_values = {given_name(layer): prefix.keys_values[layer][: batch.num_given]}
            hidden = {GIVEN_HIDDEN: prefix.hidden[batch.given_scored]}
            return keys_values | (hidden if GIVEN_HIDDEN in names else {})

        return inputs

    def _names_after(self, index: int) -> list[str]:
        """Return the tensors to read after layer `index`: those of the next layer, or the head."""
        return self._names(index + 1) or [self._checkpoint.head_name]

    def _names(self, index: int) -> list[str]:
        """Return the tensors of one layer, none after the last."""
        layer = f"model.layers.{index}."
        return [name for name in tensor_shapes(self._checkpoint.config) if name.startswith(layer)]

    def _layer(self, index: int, *, observed: bool) -> tuple[bytes, Weights]:
        """Return the graph of one layer and the weights that are its inputs."""
        options = ExportOptions(self._precision(index))
        arrays = InMemory()
        layer = UnitWriter(self._members, arrays, options, self._progress).layer(index)
        last = index == self._checkpoint.config.num_hidden_layers - 1
        width = self._checkpoint.config.hidden_size
        ones = [np.ones(width, np.float32)]
        norm = (arrays.append("norm", ir.DataType.FLOAT, (width,), ones),) if last else None
        build = layer_graph_with_intermediate_outputs if observed else layer_graph
        shape = graph_shape(self._members, options)
        model = with_weights_as_inputs(build(layer, self._rotary, shape, index, norm))
        return ir.to_proto(model).SerializeToString(), arrays.arrays | self._rotary_tables.arrays

    def _precision(self, index: int) -> Precision:
        """Return the precision that a layer is held in."""
        names = self._names(index)
        if 4 * sum(math.prod(self._checkpoint.shape(name)) for name in names) <= LARGEST_FP32_LAYER:
            return Precision.FP32
        exact = _stored_precision(self._checkpoint, names)
        return Precision.BF16 if self._half and exact is Precision.FP32 else exact

    def _head(self, hidden: Sequence[Rows]) -> list[Floats]:
        """Return log_softmax(hidden @ head^T) at the targets, [t] per batch, from hidden states [m, H].

        The head is read once, in blocks of the vocabulary.
        """
        name, config = self._checkpoint.head_name, self._checkpoint.config
        step = max(1, BLOCK_ELEMENTS // config.hidden_size)
        batches = [part.group.batch for part in self._parts]
        totals = [np.full(len(rows), -np.inf) for rows in hidden]
        chosen = [np.empty(len(batch.target_ids)) for batch in batches]

        def blocks() -> Iterator[tuple[int, Rows]]:
            for start in range(0, config.vocab_size, step):
                yield start, self._checkpoint.rows(name, start, min(start + step, config.vocab_size))

        def of_block(item: tuple[int, Rows]) -> tuple[int, list[_BlockLogits]]:
            start, block = item
            return block.size, [
                _BlockLogits.of(rows, batch, block, start)
                for rows, batch in zip(hidden, batches, strict=True)
            ]

        for size, logits in in_order(of_block, blocks()):
            for each, total, logit in zip(logits, totals, chosen, strict=True):
                np.logaddexp(total, each.log_sums, out=total)
                logit[each.targets] = each.chosen
            self._progress(size)
        return [
            logit - total[batch.target_rows]
            for batch, logit, total in zip(batches, chosen, totals, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _BlockLogits:
    """What one block of the vocabulary gives a batch: log-sums [m], and the logits of the targets in it."""

    log_sums: Floats
    targets: NDArray[np.intp]
    chosen: Rows

    @classmethod
    def of(cls, hidden: Rows, batch: Batch, block: Rows, start: int) -> _BlockLogits:
        columns = batch.target_ids - start
        here = np.flatnonzero((columns >= 0) & (columns < len(block)))
        rows = batch.target_rows[here]
        with np.errstate(over="ignore", invalid="ignore"):
            logits = hidden @ block.T  # [m, columns]
            return cls(_log_sum_exp(logits), here, logits[rows, columns[here]])


def _run_layer(
    graph: bytes, weights: Weights, parts: Sequence[_Part], given: Given, on_input: OnInput | None
) -> None:
    session = Sessions(Provider.CPU, low_memory=True).open(graph)
    names = [value.name for value in session.get_inputs()]
    wanted = [each.name for each in session.get_outputs() if not each.name.startswith(KEPT)]
    held = {name: _ort_value(array) for name, array in weights.items() if name in names}
    for part in parts:
        batch = part.group.batch
        feeds = {ROWS: part.rows, **batch.feeds(names), **given(batch, names)}
        inputs = held | {name: _ort_value(np.asarray(array)) for name, array in feeds.items()}
        outputs = session.run_with_ort_values(wanted, inputs)
        part.rows, *intermediate = (value.numpy() for value in outputs)
        if on_input is not None:
            for name, values in zip(INTERMEDIATE_OUTPUTS, intermediate, strict=True):
                on_input(name, values)


def _ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """Return the array as an input: not copied, so it must be kept."""
    if array.dtype == ml_dtypes.bfloat16:
        bf16 = ir.DataType.BFLOAT16.value
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), bf16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _embedded(checkpoint: WeightSource, token_ids: NDArray[np.int64]) -> Rows:
    """Return the embeddings [n, H] of the tokens; only the rows of distinct tokens are read."""
    tokens, positions = np.unique(token_ids, return_inverse=True)
    rows = np.concatenate([checkpoint.rows(EMBEDDING, token, token + 1) for token in tokens.tolist()])
    return checkpoint.embedded(rows)[positions]


def _stored_precision(checkpoint: WeightSource, names: Sequence[str]) -> Precision:
    """Return the precision that stores all matrices of a layer exactly: their common type, else fp32."""
    dtypes = {checkpoint.dtype(name) for name in names if len(checkpoint.shape(name)) == 2}
    return _PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else Precision.FP32


def _log_sum_exp(logits: Rows) -> Floats:
    """Return log(sum(exp(x))) of each row: float32 [m, columns] -> float64 [m]."""
    peak = logits.max(axis=-1)
    total = np.exp(logits - peak[:, None]).sum(axis=-1, dtype=np.float64)
    summed: Floats = peak + np.log(total)
    return summed

"""Run both checkpoints in fp32, layer by layer: the ground truth for the fidelity of a pair.

Neither model has to fit into memory. The exporter's own graphs run on ONNX Runtime's CPU provider, with fp32
arithmetic on the weights in their stored precision. A scratch folder holds one layer at a time, and between
two layers only the hidden states of all tokens are held. The head is computed from the checkpoint directly;
logits are materialized for one block of the vocabulary at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import GIVEN_HIDDEN, ROWS, WEIGHTS, given_name, layer_file
from stepscore.artifact.prefix import ModelPrefix
from stepscore.batching.batch import Batch, BatchGroup
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.batching.planner import plan
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Precision, Provider
from stepscore.errors import CheckpointCorrupt
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.checkpoint.weight_source import Members, WeightSource
from stepscore_export.families.base import EMBEDDING, tensor_shapes
from stepscore_export.fidelity import Floats, Scores
from stepscore_export.graphs.decoder import (
    INTERMEDIATE_OUTPUTS,
    layer_graph,
    layer_graph_with_intermediate_outputs,
)
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.options import ExportOptions
from stepscore_export.weights.row_blocks import BLOCK_ELEMENTS, Advance
from stepscore_export.weights.weight_file import WeightFile
from stepscore_export.weights.writer import UnitWriter

BATCH_ROWS = 512
"""Maximum tokens in one run of a layer, which bounds its activations; a longer sequence runs alone."""

Rows = NDArray[np.float32]
OnInput = Callable[[str, Rows], None]
"""Called with the name of an intermediate output (INTERMEDIATE_OUTPUTS) and activations [n, K]."""

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
    scratch: Path,
    progress: Advance = lambda _count: None,
) -> Scores:
    """Return policy's and reference's log-probs [L-1] (nats) of each sequence [L], L >= 2.

    The models run one after the other, so that memory and disk usage are those of one model. `scratch` is a
    folder with space for one layer in the checkpoint's precision; it is empty afterwards. `progress` is
    called for the matrices of all layers and of the head.
    """
    of_policy, of_reference = (
        ExactModel(checkpoint, sequences, scratch, progress).logprobs() for checkpoint in (policy, reference)
    )
    return list(zip(of_policy, of_reference, strict=True))


@dataclass(slots=True)
class _Part:
    """A batch of packed sequences and its current hidden states: [n, H]; after the last layer [m, H]."""

    group: BatchGroup
    rows: Rows


class ExactModel:
    """Run one checkpoint in fp32, layer by layer, on packed token sequences.

    With `half` weights that are no 16-bit numbers are rounded to bf16, which halves the memory of a layer:
    for statistics, not for a truth.
    """

    def __init__(
        self,
        checkpoint: WeightSource,
        sequences: Sequence[NDArray[np.int64]],
        scratch: Path,
        progress: Advance = lambda _count: None,
        given: tuple[GivenRows, ModelPrefix] | None = None,
        *,
        half: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._half = half
        self._scratch = scratch
        self._progress = progress
        self._next_layer = 0
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
        with os_errors_as_output_errors(self._scratch):
            folder = tempfile.TemporaryDirectory(prefix="exact-", dir=self._scratch)
        with folder as name:
            graph = self._write_layer(Path(name), self._next_layer, observed=on_input is not None)
            self._checkpoint.read_ahead(self._names_after(self._next_layer))
            done = _run_layer(graph, self._parts, self._given(self._next_layer), on_input)
        for part, rows in zip(self._parts, done, strict=True):
            part.rows = rows
        self._next_layer += 1

    def logprobs(self) -> list[Floats]:
        """Run the remaining layers and the head; return the log-probs [L-1] (nats) of each sequence."""
        self._finish()
        with np.errstate(over="ignore", invalid="ignore"):
            parts = self._head()
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
        self._finish()
        return (part.rows for part in self._parts)

    def _given(self, layer: int) -> Given:
        prefix = self._prefix

        def inputs(batch: Batch, names: Collection[str]) -> dict[str, Rows]:
            keys_values = {given_name(layer): prefix.keys_values[layer][: batch.num_given]}
            hidden = {GIVEN_HIDDEN: prefix.hidden[batch.given_scored]}
            return keys_values | (hidden if GIVEN_HIDDEN in names else {})

        return inputs

    def _finish(self) -> None:
        while self._next_layer < self._checkpoint.config.num_hidden_layers:
            self.run_next_layer()

    def _names_after(self, index: int) -> list[str]:
        """Return the tensors to read after layer `index`: those of the next layer, or the head."""
        prefix = f"model.layers.{index + 1}."
        of_next = [name for name in tensor_shapes(self._checkpoint.config) if name.startswith(prefix)]
        return of_next or [self._checkpoint.head_name]

    def _write_layer(self, folder: Path, index: int, *, observed: bool) -> Path:
        """Write the weights and the graph of one layer; return the path of the graph."""
        # Either model: the name has no effect in a unit of one.
        members: Members = {"reference": self._checkpoint}
        exact = _stored_precision(self._checkpoint, index)
        rounded = self._half and exact is Precision.FP32
        options = ExportOptions(Precision.BF16 if rounded else exact)
        last = index == self._checkpoint.config.num_hidden_layers - 1
        with WeightFile(folder / WEIGHTS) as file:
            writer = UnitWriter(members, file, options, self._progress)
            layer, rotary = writer.layer(index), writer.rotary()
            norm = writer.final_norm() if last else None
            file.close()
        build = layer_graph_with_intermediate_outputs if observed else layer_graph
        model = build(layer, rotary, graph_shape(members, options), index, norm)
        path = folder / layer_file(index)
        with os_errors_as_output_errors(path):
            path.write_bytes(ir.to_proto(model).SerializeToString())
        return path

    def _head(self) -> list[Floats]:
        """Return log_softmax(hidden @ head^T) at the targets, [t] per batch.

        The head is read once, in blocks of the vocabulary.
        """
        name, config = self._checkpoint.head_name, self._checkpoint.config
        step = max(1, BLOCK_ELEMENTS // config.hidden_size)
        totals = [np.full(len(part.rows), -np.inf) for part in self._parts]
        chosen = [np.empty(len(part.group.batch.target_ids)) for part in self._parts]
        for start in range(0, config.vocab_size, step):
            block = self._checkpoint.rows(name, start, min(start + step, config.vocab_size))
            for part, total, logit in zip(self._parts, totals, chosen, strict=True):
                logits = part.rows @ block.T  # [m, columns]
                np.logaddexp(total, _log_sum_exp(logits), out=total)
                columns = part.group.batch.target_ids - start
                here = np.flatnonzero((columns >= 0) & (columns < len(block)))
                logit[here] = logits[part.group.batch.target_rows[here], columns[here]]
            self._progress(block.size)
        return [
            logit - total[part.group.batch.target_rows]
            for part, logit, total in zip(self._parts, chosen, totals, strict=True)
        ]


def _run_layer(graph: Path, parts: Sequence[_Part], given: Given, on_input: OnInput | None) -> list[Rows]:
    # A separate function, so that the session, which maps the weights, is released before they are removed.
    session = Sessions(Provider.CPU, low_memory=True).open(graph)
    return [_run(session, part, given, on_input) for part in parts]


def _run(session: ort.InferenceSession, part: _Part, given: Given, on_input: OnInput | None) -> Rows:
    inputs, batch = {value.name for value in session.get_inputs()}, part.group.batch
    rows, *intermediate = session.run(None, {ROWS: part.rows, **batch.feeds(inputs), **given(batch, inputs)})
    if on_input is not None:
        for name, values in zip(INTERMEDIATE_OUTPUTS, intermediate, strict=True):
            on_input(name, values)
    return np.asarray(rows)


def _embedded(checkpoint: WeightSource, token_ids: NDArray[np.int64]) -> Rows:
    """Return the embeddings [n, H] of the tokens; only the rows of distinct tokens are read."""
    tokens, positions = np.unique(token_ids, return_inverse=True)
    rows = np.concatenate([checkpoint.rows(EMBEDDING, token, token + 1) for token in tokens.tolist()])
    return checkpoint.embedded(rows)[positions]


def _stored_precision(checkpoint: WeightSource, index: int) -> Precision:
    """Return the precision that stores all matrices of a layer exactly: their common type, else fp32."""
    names = [name for name in tensor_shapes(checkpoint.config) if name.startswith(f"model.layers.{index}.")]
    dtypes = {checkpoint.dtype(name) for name in names if len(checkpoint.shape(name)) == 2}
    return _PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else Precision.FP32


def _log_sum_exp(logits: Rows) -> Floats:
    """Return log(sum(exp(x))) of each row: float32 [m, columns] -> float64 [m]."""
    peak = logits.max(axis=-1)
    total = np.exp(logits - peak[:, None]).sum(axis=-1, dtype=np.float64)
    summed: Floats = peak + np.log(total)
    return summed

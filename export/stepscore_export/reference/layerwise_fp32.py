"""Both checkpoints run exactly, on a machine that holds neither: what a pair's fidelity is measured against.

Arithmetic is fp32 on the weights as the checkpoint stores them, by the exporter's own graphs on ONNX
Runtime's CPU provider. One layer at a time lies in a scratch folder; between two layers only the rows of all
tokens are held. The head never touches the disk: its logits exist for one block of the vocabulary at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import ROWS, WEIGHTS, layer_file
from stepscore.batching.batch import BatchGroup
from stepscore.batching.planner import plan
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Precision, Provider
from stepscore.errors import CheckpointCorrupt
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members
from stepscore_export.families.base import EMBEDDING, tensor_shapes
from stepscore_export.fidelity import Floats, Scores
from stepscore_export.graphs.decoder import INTERMEDIATE_OUTPUTS, layer_graph, tapped_layer_graph
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.options import ExportOptions
from stepscore_export.weights.row_blocks import BLOCK_ELEMENTS, Advance
from stepscore_export.weights.weight_file import WeightFile
from stepscore_export.weights.writer import UnitWriter

BATCH_ROWS = 512
"""Rows in one run of a layer: bounds its activations. A longer sequence goes alone."""

Rows = NDArray[np.float32]
OnInput = Callable[[str, Rows], None]
"""Called with the name of a tap and rows [n, K]."""

_PRECISIONS = MappingProxyType(
    {
        np.dtype(np.float32): Precision.FP32,
        np.dtype(np.float16): Precision.FP16,
        np.dtype(ml_dtypes.bfloat16): Precision.BF16,
    }
)


def fp32_logprobs(
    policy: Checkpoint,
    reference: Checkpoint,
    sequences: Sequence[NDArray[np.int64]],
    scratch: Path,
    progress: Advance = lambda _count: None,
) -> Scores:
    """Return policy's and reference's log-probs [L-1] (nats) of each sequence [L], L >= 2.

    The models run one after the other, so that memory and disk are those of one.
    `scratch` is a folder with room for one layer as the checkpoint stores it; nothing stays there. `progress`
    hears of the matrices of all layers and of the head.
    """
    ours, theirs = (
        ExactModel(checkpoint, sequences, scratch, progress).logprobs() for checkpoint in (policy, reference)
    )
    return list(zip(ours, theirs, strict=True))


@dataclass(slots=True)
class _Part:
    """Some of the sequences, packed, and how far their rows have come: [n, H]; after all layers [m, H]."""

    group: BatchGroup
    rows: Rows


class ExactModel:
    """One checkpoint run exactly, a layer at a time, over a packed batch of token sequences."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sequences: Sequence[NDArray[np.int64]],
        scratch: Path,
        progress: Advance = lambda _count: None,
    ) -> None:
        self._checkpoint = checkpoint
        self._scratch = scratch
        self._progress = progress
        self._next_layer = 0
        # No prefix sharing: `on_input` sees a token as often as it occurs, and each row has one target.
        groups = plan(sequences, [0] * len(sequences), BATCH_ROWS, share=False)
        self._parts = [_Part(group, _embedded(checkpoint, group.batch.input_ids)) for group in groups]

    def run_next_layer(self, on_input: OnInput | None = None) -> None:
        """Run the next layer; raises IndexError after the last.

        `on_input` gets the activations entering its matrices, named as in INTERMEDIATE_OUTPUTS, in parts.
        """
        if self._next_layer == self._checkpoint.config.num_hidden_layers:
            raise IndexError(f"all {self._next_layer} layers have run")
        with os_errors_as_output_errors(self._scratch):
            folder = tempfile.TemporaryDirectory(prefix="exact-", dir=self._scratch)
        with folder as name:
            graph = self._write_layer(Path(name), self._next_layer, tapped=on_input is not None)
            self._checkpoint.read_ahead(self._names_after(self._next_layer))
            done = _run_layer(graph, self._parts, on_input)
        for part, rows in zip(self._parts, done, strict=True):
            part.rows = rows
        self._next_layer += 1

    def logprobs(self) -> list[Floats]:
        """Run what is left and return the log-probs [L-1] (nats) of each sequence."""
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
            member: logprobs[pairs]
            for part, logprobs in zip(self._parts, parts, strict=True)
            for member, pairs in zip(part.group.members, part.group.batch.target_of, strict=True)
        }
        return [scores[index] for index in range(len(scores))]

    def hidden(self) -> Iterator[Rows]:
        """Run what is left and give the rows [m, H] that enter the head, part by part."""
        self._finish()
        return (part.rows for part in self._parts)

    def _finish(self) -> None:
        while self._next_layer < self._checkpoint.config.num_hidden_layers:
            self.run_next_layer()

    def _names_after(self, index: int) -> list[str]:
        """Return the tensors that are read once layer `index` has run: those of the next, or the head."""
        prefix = f"model.layers.{index + 1}."
        of_next = [name for name in tensor_shapes(self._checkpoint.config) if name.startswith(prefix)]
        return of_next or [self._checkpoint.head_name]

    def _write_layer(self, folder: Path, index: int, *, tapped: bool) -> Path:
        """Write weights and graph of one layer and return the graph's path."""
        members: Members = {"reference": self._checkpoint}  # whichever it is: alone in its unit
        options = ExportOptions(precision=_stored_precision(self._checkpoint, index))
        last = index == self._checkpoint.config.num_hidden_layers - 1
        with WeightFile(folder / WEIGHTS) as file:
            writer = UnitWriter(members, file, options, self._progress)
            layer, rotary = writer.layer(index), writer.rotary()
            norm = writer.final_norm() if last else None
            file.close()
        build = tapped_layer_graph if tapped else layer_graph
        model = build(layer, rotary, graph_shape(members, options), index, norm)
        path = folder / layer_file(index)
        with os_errors_as_output_errors(path):
            path.write_bytes(ir.to_proto(model).SerializeToString())
        return path

    def _head(self) -> list[Floats]:
        """log_softmax(hidden @ head^T) at the targets, [m] of each part: the head is read once, in blocks."""
        name, config = self._checkpoint.head_name, self._checkpoint.config
        step = max(1, BLOCK_ELEMENTS // config.hidden_size)
        totals = [np.full(len(part.rows), -np.inf) for part in self._parts]
        chosen = [np.empty(len(part.rows)) for part in self._parts]
        for start in range(0, config.vocab_size, step):
            block = self._checkpoint.rows(name, start, min(start + step, config.vocab_size))
            for part, total, logit in zip(self._parts, totals, chosen, strict=True):
                logits = part.rows @ block.T  # [m, columns]
                np.logaddexp(total, _log_sum_exp(logits), out=total)
                columns = part.group.batch.target_ids - start
                here = np.flatnonzero((columns >= 0) & (columns < len(block)))
                logit[here] = logits[here, columns[here]]
            self._progress(block.size)
        return [logit - total for logit, total in zip(chosen, totals, strict=True)]


def _run_layer(graph: Path, parts: Sequence[_Part], on_input: OnInput | None) -> list[Rows]:
    # In a function of its own: the session, which maps the weights, is gone before they are removed.
    session = Sessions(Provider.CPU, low_memory=True).open(graph)
    return [_run(session, part, on_input) for part in parts]


def _run(session: ort.InferenceSession, part: _Part, on_input: OnInput | None) -> Rows:
    inputs = {value.name for value in session.get_inputs()}
    rows, *tapped = session.run(None, {ROWS: part.rows, **part.group.batch.feeds(inputs)})
    if on_input is not None:
        for name, values in zip(INTERMEDIATE_OUTPUTS, tapped, strict=True):
            on_input(name, values)
    return np.asarray(rows)


def _embedded(checkpoint: Checkpoint, token_ids: NDArray[np.int64]) -> Rows:
    """Rows [n, H] of the tokens; each is read once, the table never."""
    tokens, positions = np.unique(token_ids, return_inverse=True)
    rows = np.concatenate([checkpoint.rows(EMBEDDING, token, token + 1) for token in tokens.tolist()])
    return rows[positions]


def _stored_precision(checkpoint: Checkpoint, index: int) -> Precision:
    """What holds every matrix of a layer as it is: the type they share, else fp32."""
    names = [name for name in tensor_shapes(checkpoint.config) if name.startswith(f"model.layers.{index}.")]
    dtypes = {checkpoint.dtype(name) for name in names if len(checkpoint.shape(name)) == 2}
    return _PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else Precision.FP32


def _log_sum_exp(logits: Rows) -> Floats:
    """log(sum(exp(x))) of each row, float64 [m] of float32 [m, columns]."""
    peak = logits.max(axis=-1)
    total = np.exp(logits - peak[:, None]).sum(axis=-1, dtype=np.float64)
    summed: Floats = peak + np.log(total)
    return summed

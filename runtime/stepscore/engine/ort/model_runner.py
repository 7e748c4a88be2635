"""Runs a unit: embed, layers, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import onnxruntime as ort

from stepscore.artifact.graph_contract import CHUNK_ROWS, EMBED, NEXT, TARGETS, head_files, layer_file
from stepscore.artifact.manifest import Manifest, ModelName, Unit
from stepscore.batching.batch import Batch, chunks
from stepscore.engine.base import LogSoftmaxAccumulator, PairLogprobs
from stepscore.engine.ort.binding import Values, allocate_outputs, axis_sizes, run_bound
from stepscore.engine.ort.graph_loader import GraphLoader


@dataclass(frozen=True, slots=True)
class Stages:
    """The graphs that rows go through, in order, and those that each give a part of the log-probs."""

    layers: Sequence[str]
    heads: Sequence[str]


def layer_by_layer(manifest: Manifest) -> Stages:
    """Return the stages of a unit that is run one layer at a time."""
    shape = manifest.architecture
    layers = [layer_file(index) for index in range(shape.num_hidden_layers)]
    return Stages(layers, head_files(shape.vocab_size))


class UnitRunner:
    """One or both models: rows from graph to graph."""

    def __init__(self, unit: Unit, graphs: GraphLoader, stages: Stages) -> None:
        self.models = unit.models
        self._graphs = graphs
        self._stages = stages

    def keep(self) -> None:
        """Hold all graphs open from now on."""
        self._graphs.keep([EMBED, *self._stages.layers, *self._stages.heads])

    def run(self, window: Sequence[Batch], head_rows: int) -> list[tuple[Values, PairLogprobs]]:
        """Return hidden rows [m, hidden_size] (on the device) and log-probs of every batch."""
        rows = self._embedded(window)
        sums = [{model: LogSoftmaxAccumulator.of(batch) for model in self.models} for batch in window]
        with closing(self._graphs.in_turn([*self._stages.layers, *self._stages.heads])) as sessions:
            for _ in self._stages.layers:
                session = next(sessions)
                for index, batch in enumerate(window):  # in place: the rows before it are free at once
                    rows[index] = self._layers(session, batch, rows[index])
                del session
            for _ in self._stages.heads:
                session = next(sessions)
                for hidden, batch, of_batch in zip(rows, window, sums, strict=True):
                    self._head(session, hidden, batch, head_rows, of_batch)
                del session
        logprobs = ({model: each.total() for model, each in of_batch.items()} for of_batch in sums)
        return list(zip(rows, logprobs, strict=True))

    def _embedded(self, window: Sequence[Batch]) -> list[Values]:
        # In a function of its own: a table that is not kept is gone before the layers come.
        embed = self._graphs.get(EMBED)
        rows = [allocate_outputs(embed, axis_sizes(batch), self._graphs.embed_device) for batch in window]
        for batch, outputs in zip(window, rows, strict=True):
            run_bound(embed, batch.feeds(_inputs(embed)), {}, outputs)
        return rows

    def _layers(self, session: ort.InferenceSession, batch: Batch, rows: Values) -> Values:
        outputs = allocate_outputs(session, axis_sizes(batch), self._graphs.device)
        run_bound(session, batch.feeds(_inputs(session)), rows, outputs)
        return {key.removeprefix(NEXT): value for key, value in outputs.items()}

    def _head(
        self,
        session: ort.InferenceSession,
        hidden: Values,
        batch: Batch,
        head_rows: int,
        sums: Mapping[ModelName, LogSoftmaxAccumulator],
    ) -> None:
        """Add what this part of the head says of the targets, at most `head_rows` rows at a time."""
        names = [value.name for value in session.get_outputs()]
        for part, rows, targets in chunks(batch, head_rows):
            outputs = allocate_outputs(session, {"t": len(targets)}, "cpu")
            run_bound(session, {CHUNK_ROWS: rows, TARGETS: targets}, hidden, outputs)
            for model, name in zip(self.models, names, strict=True):
                sums[model].add(part, outputs[name].numpy())


def _inputs(session: ort.InferenceSession) -> set[str]:
    return {value.name for value in session.get_inputs()}

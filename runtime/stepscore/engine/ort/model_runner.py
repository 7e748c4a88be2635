"""Run the graphs of a unit: embedding, layers, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.generic_graphs import KEPT
from stepscore.artifact.graph_contract import (
    CHUNK_ROWS,
    EMBED,
    KEPT_INDEX,
    NEXT,
    TARGETS,
    head_files,
    layer_file,
)
from stepscore.artifact.manifest import Manifest, ModelName, Unit
from stepscore.batching.batch import Batch, chunks
from stepscore.batching.kept_prefixes import Keeping
from stepscore.engine.base import PairLogprobs, logprobs_of
from stepscore.engine.ort.binding import Values, allocate_outputs, axis_sizes, run_bound
from stepscore.engine.ort.given_values import GivenValues, kept_index
from stepscore.engine.ort.graph_loader import GraphLoader


@dataclass(frozen=True, slots=True)
class Stages:
    """Graphs of the layers, in order, and of the parts of the head."""

    layers: Sequence[str]
    heads: Sequence[str]


def layer_by_layer(manifest: Manifest) -> Stages:
    """Return the stages of a unit that runs one layer at a time."""
    shape = manifest.architecture
    layers = [layer_file(index) for index in range(shape.num_hidden_layers)]
    return Stages(layers, head_files(shape.vocab_size))


class UnitRunner:
    """Runs batches through the graphs of a unit, which holds one or both models."""

    def __init__(self, unit: Unit, graphs: GraphLoader, stages: Stages, given: GivenValues) -> None:
        self.models = unit.models
        self._given = given
        self._graphs = graphs
        self._stages = stages

    def keep(self) -> None:
        """Open all graphs and keep them open."""
        self._graphs.keep([EMBED, *self._stages.layers, *self._stages.heads])

    @property
    def keeps_rows(self) -> bool:
        """Return whether the open graphs have outputs for kept rows; those of old pairs do not."""
        return all(KEPT_INDEX in _inputs(self._graphs.get(name)) for name in self._stages.layers)

    def run(
        self, window: Sequence[Batch], head_rows: int, keepings: Sequence[Keeping | None]
    ) -> list[tuple[Values, PairLogprobs]]:
        """Return final hidden states [k + m, hidden_size] (on the device), log-probs [g + t] a batch."""
        rows = self._embedded(window)
        parts: list[dict[ModelName, list[NDArray[np.float32]]]] = [
            {model: [] for model in self.models} for _ in window
        ]
        with closing(self._graphs.in_turn([*self._stages.layers, *self._stages.heads])) as sessions:
            for _ in self._stages.layers:
                session = next(sessions)
                for index, batch in enumerate(window):  # in place: the states before it are released at once
                    rows[index] = self._layers(session, batch, rows[index], keepings[index])
                del session
            for _ in self._stages.heads:
                session = next(sessions)
                for hidden, batch, of_batch in zip(rows, window, parts, strict=True):
                    self._head(session, hidden, batch, head_rows, of_batch)
                del session
        logprobs = [
            {
                model: np.concatenate(
                    [self._given.logprobs(model, batch), logprobs_of(np.concatenate(each, axis=2))]
                )
                for model, each in of_batch.items()
            }
            for batch, of_batch in zip(window, parts, strict=True)
        ]
        for hidden, found, keeping in zip(rows, logprobs, keepings, strict=True):
            if keeping is not None:
                self._given.keep_results(hidden, found, keeping)
        return list(zip(rows, logprobs, strict=True))

    def _embedded(self, window: Sequence[Batch]) -> list[Values]:
        # A separate function: an embedding that is not kept open is released before the layers are opened.
        embed = self._graphs.get(EMBED)
        rows = [allocate_outputs(embed, axis_sizes(batch), self._graphs.device) for batch in window]
        for batch, outputs in zip(window, rows, strict=True):
            run_bound(embed, batch.feeds(_inputs(embed)), {}, outputs)
        return rows

    def _layers(
        self, session: ort.InferenceSession, batch: Batch, rows: Values, keeping: Keeping | None
    ) -> Values:
        names = _inputs(session)
        outputs = allocate_outputs(session, axis_sizes(batch, keeping), self._graphs.device)
        feeds = {**batch.feeds(names), **kept_index(keeping, names)}
        run_bound(session, feeds, rows | self._given.inputs(session, batch), outputs)
        if keeping is not None:
            self._given.keep(outputs, keeping)
        return {key.removeprefix(NEXT): value for key, value in outputs.items() if not key.startswith(KEPT)}

    def _head(
        self,
        session: ort.InferenceSession,
        hidden: Values,
        batch: Batch,
        head_rows: int,
        parts: Mapping[ModelName, list[NDArray[np.float32]]],
    ) -> None:
        """Append the outputs of this part of the head, at most `head_rows` scored tokens at a time."""
        found: dict[ModelName, list[NDArray[np.float32]]] = {model: [] for model in self.models}
        names = [value.name for value in session.get_outputs()]
        for _, rows, targets in chunks(batch, head_rows):
            outputs = allocate_outputs(session, {"t": len(targets)}, "cpu")
            run_bound(session, {CHUNK_ROWS: rows, TARGETS: targets}, hidden, outputs)
            for model, name in zip(self.models, names, strict=True):
                found[model].append(outputs[name].numpy())
        for model, of_chunks in found.items():
            parts[model].append(np.concatenate(of_chunks))


def _inputs(session: ort.InferenceSession) -> set[str]:
    return {value.name for value in session.get_inputs()}

"""Run ONNX pairs on ONNX Runtime: sessions, residency, chunked head.

Each unit of a pair runs the same way: embedding, body or its layers one by one, then the head over chunks of
the scored tokens.
Values are passed between graphs as OrtValues, so hidden states stay on the device. Inputs are bound by name;
the engine does not depend on what a graph computes.

    resident    all graphs stay open; each batch runs through all of them
    alternate   one unit is open at a time; the batches of a window run through it one after the other
    stream      one layer is open at a time; all batches of a window run through it while the next layer is
                prefetched

All three compute the same operators in the same order. Bits may differ where `stream` skips prepacking of
weights of a floating-point GEMM.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.graph_check import check_graphs
from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, unsigned_file
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import Given, GivenRows
from stepscore.batching.kept_prefixes import keeping
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.ort.binding import as_numpy
from stepscore.engine.ort.given_values import GivenValues
from stepscore.engine.ort.graph_loader import GraphLoader
from stepscore.engine.ort.model_runner import Stages, UnitRunner, layer_by_layer
from stepscore.engine.ort.provider_checks import needs_unsigned_weights, require, resolve
from stepscore.engine.ort.sessions import Sessions
from stepscore.engine.row_values import RowValues
from stepscore.enums import Exporter, Residency
from stepscore.memory.kept import check_prefix_cache, empty_cache, too_old_to_keep
from stepscore.memory.settings import check_residency, usual_head_rows


class OrtEngine(Engine):
    """An open pair of ONNX graphs that runs windows of batches."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        require(options.provider)  # a missing provider is reported before a pair of another target
        portable = pair.manifest.exporter is Exporter.OPTIMUM
        self.provider = resolve(options.provider, pair.manifest.target, portable=portable)
        check_residency(pair.manifest, options.residency)
        if options.prefix_cache:
            check_prefix_cache(pair.manifest, options.residency)
        require(self.provider)
        integers = pair.manifest.has_int8_activations
        unsigned = integers and needs_unsigned_weights()
        self._head_rows = options.head_rows or usual_head_rows(pair.manifest)
        streams = options.residency is Residency.STREAM
        # On the CPU weights are dequantized tile by tile. The arena reuses the buffers of the last tiles as
        # long as one run is one layer: all layers in one graph would leave buffers of every size in it.
        by_tiles = pair.manifest.dequantizes
        # Integer weights are prepacked once per window, during prefetch; float weights would need twice
        # their size for it.
        low_memory = streams and not (options.prefetch_next_layer and (integers or by_tiles))
        sessions = Sessions(
            self.provider,
            options.threads,
            preserve_node_order=by_tiles,
            low_memory=low_memory,
        )
        stages = layer_by_layer(pair.manifest) if by_tiles or streams else Stages([BODY], [HEAD])
        if options.prefix_cache:  # in one graph, the given and kept rows of all layers would exist at once
            stages = Stages(layer_by_layer(pair.manifest).layers, stages.heads)
        opened = [*stages.layers, *stages.heads]
        check_graphs(
            pair.path,
            pair.manifest,
            [EMBED, *(unsigned_file(name) if unsigned else name for name in opened)],
        )
        prefix = pair.prefix()
        self.given: Given = GivenRows.of(prefix)
        num_slots = 0
        if options.prefix_cache:
            self.given = empty_cache(pair, options.prefix_cache, element_bytes=4)
            num_slots = self.given.counts.capacity
        shape, device = pair.manifest.architecture, self.provider.value
        self._units = [
            UnitRunner(
                unit,
                GraphLoader(
                    pair.path / unit.folder,
                    unit,
                    sessions,
                    prefetch_next_layer=options.prefetch_next_layer,
                    unsigned=unsigned,
                ),
                stages,
                GivenValues(unit.models, RowValues(unit.models, prefix, shape, num_slots), shape, device),
            )
            for unit in pair.manifest.units
        ]
        self._by_batch = options.by_batch
        if self._by_batch:
            for each in self._units:
                each.keep()
        if options.prefix_cache and not all(each.keeps_rows for each in self._units):
            raise too_old_to_keep()

    @classmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable where the pair needs an integer GEMM that this CPU computes wrongly.

        Raises ModelInvalid for a graph that no exporter writes.
        """
        if pair.manifest.has_int8_activations:
            needs_unsigned_weights()
        check_graphs(pair.path, pair.manifest)

    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        """Yield the log-probs (nats, float32 [t]) of each batch's targets, by model, in order.

        With residency `resident` a batch is yielded as soon as it is computed, else after the whole window.
        """
        windows = [[batch] for batch in batches] if self._by_batch else [batches]
        for window in windows:
            yield from self._run(window)

    def _run(self, window: Sequence[Batch]) -> list[PairLogprobs]:
        results: list[PairLogprobs] = [{} for _ in window]
        with keeping(self.given, window) as keepings:
            for unit in self._units:
                for known, (_, logprobs) in zip(
                    results, unit.run(window, self._head_rows, keepings), strict=True
                ):
                    known.update(logprobs)
        return results

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the final hidden states [m, hidden_size], the head's input, by model, and the log-probs."""
        hidden: dict[ModelName, NDArray[np.floating]] = {}
        results: PairLogprobs = {}
        for unit in self._units:
            ((values, logprobs),) = unit.run([batch], self._head_rows, [None])
            hidden |= dict(zip(unit.models, map(as_numpy, values.values()), strict=True))
            results |= logprobs
        return hidden, results

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._units.clear()

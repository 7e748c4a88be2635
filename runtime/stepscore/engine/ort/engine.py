"""A window of batches in, log-probs of both models out: ONNX Runtime sessions, residency, the chunked head.

Every unit of a pair runs the same way: embed on the host, body (or its layers, one by one), then the head
over chunks of the scored rows. Values travel between the graphs as OrtValues, so hidden rows never leave
the device. Graph inputs are bound by name; the engine does not know what a graph computes.

    resident    every graph stays open; a batch goes through all of them, then the next batch
    alternate   one unit is open at a time; the batches of a window go through it one by one
    stream      one layer is open at a time; all batches of a window go through it, and meanwhile the next
                layer is opened and its weights are read from the disk

The three give the same numbers: the body is the layers, operator by operator. Bits may differ where `stream`
does not pack weights that are then multiplied in floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import (
    BODY,
    HEAD,
)
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import GivenRows
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.ort.binding import as_numpy
from stepscore.engine.ort.given_values import GivenValues
from stepscore.engine.ort.graph_loader import GraphLoader
from stepscore.engine.ort.model_runner import Stages, UnitRunner, layer_by_layer
from stepscore.engine.ort.provider_checks import needs_unsigned_weights, require, resolve
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Exporter, Provider, Residency
from stepscore.memory.estimate import check_gpu_limit, check_residency
from stepscore.memory.settings import usual_head_rows


class OrtEngine(Engine):
    """An open pair of graphs, ready to run windows of batches."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        require(options.provider)  # what is missing on the machine is said before what the pair is for
        portable = pair.manifest.exporter is Exporter.OPTIMUM
        self.provider = resolve(options.provider, pair.manifest.target, portable=portable)
        check_residency(pair.manifest, options.residency)
        require(self.provider)
        if self.provider is Provider.CUDA and options.gpu_mem_limit is not None:
            check_gpu_limit(pair.manifest, options.residency, options.gpu_mem_limit)
        integers = pair.manifest.has_int8_activations
        unsigned = integers and needs_unsigned_weights()
        self._head_rows = options.head_rows or usual_head_rows(pair.manifest)
        streams = options.residency is Residency.STREAM
        # On the CPU a matrix is turned into floats piece by piece. An arena has the last pieces at hand for
        # the next, as long as a run is a layer: all layers in one would leave pieces of every size in it.
        preserve_order = pair.manifest.dequantizes
        in_pieces = preserve_order and self.provider is Provider.CPU
        # Codes are packed once a window, ahead of their turn; floats would take twice their size for it.
        low_memory = streams and not (options.prefetch_next_layer and (integers or in_pieces))
        sessions = Sessions(
            self.provider,
            options.threads,
            options.gpu_mem_limit,
            preserve_node_order=preserve_order,
            low_memory=low_memory,
        )
        stages = layer_by_layer(pair.manifest) if in_pieces or streams else Stages([BODY], [HEAD])
        # Where everything is on the GPU and memory is not limited, tables are there as well: rows that are
        # looked up on the host take as long to copy as a layer takes to compute.
        embed_on_host = not (options.by_batch and options.gpu_mem_limit is None)
        prefix = pair.prefix()
        self.given = GivenRows.of(prefix)
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
                    embed_on_host=embed_on_host,
                ),
                stages,
                GivenValues(unit.models, prefix, shape, device),
            )
            for unit in pair.manifest.units
        ]
        self._by_batch = options.by_batch
        if self._by_batch:
            for each in self._units:
                each.keep()

    @classmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable where the pair needs integer products that this CPU gets wrong."""
        if pair.manifest.has_int8_activations:
            needs_unsigned_weights()

    def run(self, batches: Sequence[Batch]) -> Iterator[PairLogprobs]:
        """Give the log-probs (nats, float32 [t]) of each batch's (row, token) pairs, by model, in order.

        A resident engine gives a batch's as soon as it is done; the others when all are.
        """
        windows = [[batch] for batch in batches] if self._by_batch else [batches]
        for window in windows:
            yield from self._run(window)

    def _run(self, window: Sequence[Batch]) -> list[PairLogprobs]:
        results: list[PairLogprobs] = [{} for _ in window]
        for unit in self._units:
            for known, (_, logprobs) in zip(results, unit.run(window, self._head_rows), strict=True):
                known.update(logprobs)
        return results

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the hidden rows [m, hidden_size] that the head reads as well, by model."""
        hidden: dict[ModelName, NDArray[np.floating]] = {}
        results: PairLogprobs = {}
        for unit in self._units:
            ((values, logprobs),) = unit.run([batch], self._head_rows)
            hidden |= dict(zip(unit.models, map(as_numpy, values.values()), strict=True))
            results |= logprobs
        return hidden, results

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._units.clear()

"""Run pairs for CUDA: a handful of sessions, weights as inputs, each matrix decoded once a window.

A window runs stage by stage. For a layer the reference's weights are decoded, and all batches run through it;
then the policy's are made of them, and all batches of the policy run. Hidden states of the whole window stay
on the device, and a layer writes its output over its input. The head runs the same way, tile by tile.

    resident    all stages are on the device
    partial     as many as the memory limit allows, the others are copied while the stage before runs
    stream      none stays

On the CPU provider the same code runs the fp32 variants of the graphs: host memory is the device.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.graph_check import check_graphs
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.given_rows import Given, GivenRows
from stepscore.batching.kept_prefixes import keeping
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.engine.cuda.batches import LoadedBatch
from stepscore.engine.cuda.decoding import OpenGraphs, scratch_bytes
from stepscore.engine.cuda.hardware import Hardware, hardware_of
from stepscore.engine.cuda.unit_runner import UnitFiles, UnitRunner
from stepscore.engine.cuda.weight_ring import WeightRing
from stepscore.engine.element_types import BITS
from stepscore.engine.ort.provider_checks import require, resolve
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Residency
from stepscore.memory.gpu import evenly_spread
from stepscore.memory.kept import check_prefix_cache, empty_cache, too_old_to_keep
from stepscore.memory.settings import check_residency, usual_head_rows


class CudaEngine(Engine):
    """An open pair of generic graphs that runs windows of batches."""

    def __init__(
        self, pair: Pair, options: EngineOptions | None = None, hardware: Hardware | None = None
    ) -> None:
        """Load the weights that stay on the device; `hardware` replaces that of the provider, in tests."""
        options = options or EngineOptions()
        require(options.provider)
        self.provider = resolve(options.provider, pair.manifest.target, portable=True)
        check_residency(pair.manifest, options.residency)
        if options.prefix_cache:
            check_prefix_cache(pair.manifest, options.residency)
        require(self.provider)
        check_graphs(pair.path, pair.manifest)
        hardware = hardware or hardware_of(self.provider, pair.manifest)
        self.given: Given = GivenRows.of(pair.prefix())
        num_slots = 0
        if options.prefix_cache:
            self.given = empty_cache(pair, options.prefix_cache, BITS[hardware.compute] // 8)
            num_slots = self.given.counts.capacity
        self._device, self._copies = hardware.device, hardware.copies
        self._head_rows = options.head_rows or usual_head_rows(pair.manifest)
        files = [UnitFiles.open(pair, unit) for unit in pair.manifest.units]
        stored = [stage for each in files for stage in each.stored()]
        needed = (scratch_bytes(each.stage.matrices, hardware.compute) for each in stored)
        scratch = self._device.allocate(max(needed))
        opened = OpenGraphs(Sessions(self.provider, options.threads))
        self._units = [
            UnitRunner(pair, each, opened, hardware, scratch, num_slots=num_slots) for each in files
        ]
        if options.prefix_cache and not all(each.keeps_rows for each in self._units):
            raise too_old_to_keep()
        kept = evenly_spread(num_kept(options, len(stored)), len(stored))
        slots = 2 if options.prefetch_next_layer else 1
        self._ring = WeightRing(self._device, self._copies, stored, kept, slots=slots)

    @classmethod
    def check(cls, pair: Pair) -> None:
        """Raise ModelInvalid for a graph or a table of tensors that no exporter writes."""
        check_graphs(pair.path, pair.manifest)
        for unit in pair.manifest.units:
            UnitFiles.open(pair, unit)

    @property
    def device_bytes(self) -> int:
        """Return the bytes of weights, scratch and hidden states on the device."""
        return self._device.num_bytes

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Look up the embeddings of a window that runs next, in the caller's thread."""
        for unit in self._units:
            unit.embedding.look_up(batches)

    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        """Yield the log-probs (nats, float32 [g + t]) of each batch, by model, in order."""
        for _, logprobs in self._run(batches):
            yield logprobs

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the final hidden states [k + m, hidden_size] by model, and the log-probs."""
        ((hidden, logprobs),) = self._run([batch], with_hidden=True)
        return hidden, logprobs

    def close(self) -> None:
        """Release the weights and their memory."""
        self._ring.close()
        self._copies.close()
        self._units.clear()

    def _run(
        self, window: Sequence[Batch], *, with_hidden: bool = False
    ) -> list[tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]]:
        found: list[tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]] = [({}, {}) for _ in window]
        with keeping(self.given, window) as keepings, closing(self._ring.in_turn()) as stages:
            loaded = [
                LoadedBatch.of(batch, kept, self._device, self._head_rows)
                for batch, kept in zip(window, keepings, strict=True)
            ]
            for unit in self._units:
                try:
                    ran = unit.run(loaded, stages)
                    for model in unit.models:
                        for (hidden, logprobs), tensor, values in zip(
                            found, ran.hidden[model], unit.logprobs(ran, model), strict=True
                        ):
                            logprobs[model] = values
                            if with_hidden:
                                hidden[model] = self._copies.read(tensor)
                finally:
                    unit.release()
            next(stages, None)  # lets the ring copy the first stages of the next window
        return found


def num_kept(options: EngineOptions, num_stages: int) -> int:
    """Return how many stages stay on the device."""
    if options.residency is Residency.STREAM:
        return 0
    if options.residency is Residency.PARTIAL:
        return min(options.resident_stages, num_stages)
    return num_stages

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

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.manifest import (
    BODY,
    EMBED,
    HEAD,
    WEIGHTS,
    Manifest,
    ModelName,
    Unit,
    head_files,
    layer_file,
    unsigned_file,
)
from stepscore.artifact.pair import Pair
from stepscore.batching.planner import Batch, chunks
from stepscore.engine.base import EngineOptions, LogProbs, Logprobs, PairEngine
from stepscore.engine.ort.sessions import (
    Sessions,
    as_numpy,
    give_back_memory,
    naming_full_memory,
    needs_unsigned_weights,
    require,
    resolve,
)
from stepscore.enums import Exporter, Provider, Residency
from stepscore.fileio import read_ahead
from stepscore.memory.estimate import check_gpu_limit, check_residency, usual_head_rows

Values = dict[str, ort.OrtValue]
_ELEMENTS = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
"""ONNX's numbers of the types of outputs: numpy has no bfloat16."""


class Engine(PairEngine):
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
        ordered = pair.manifest.dequantizes
        in_pieces = ordered and self.provider is Provider.CPU
        # Codes are packed once a window, ahead of their turn; floats would take twice their size for it.
        lean = streams and not (options.ahead and (integers or in_pieces))
        sessions = Sessions(self.provider, options.threads, options.gpu_mem_limit, ordered=ordered, lean=lean)
        stages = _layer_by_layer(pair.manifest) if in_pieces or streams else _Stages([BODY], [HEAD])
        # Where everything is on the GPU and memory is not limited, tables are there as well: rows that are
        # looked up on the host take as long to copy as a layer takes to compute.
        embed_on_host = not (options.by_batch and options.gpu_mem_limit is None)
        self._units = [
            _Unit(
                unit,
                _Graphs(
                    pair.path / unit.folder,
                    unit,
                    sessions,
                    ahead=options.ahead,
                    unsigned=unsigned,
                    embed_on_host=embed_on_host,
                ),
                stages,
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

    def run(self, batches: Sequence[Batch]) -> Iterator[Logprobs]:
        """Give the log-probs (nats, float32 [t]) of each batch's (row, token) pairs, by model, in order.

        A resident engine gives a batch's as soon as it is done; the others when all are.
        """
        windows = [[batch] for batch in batches] if self._by_batch else [batches]
        for window in windows:
            yield from self._run(window)

    def _run(self, window: Sequence[Batch]) -> list[Logprobs]:
        results: list[Logprobs] = [{} for _ in window]
        for unit in self._units:
            for known, (_, logprobs) in zip(results, unit.run(window, self._head_rows), strict=True):
                known.update(logprobs)
        return results

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], Logprobs]:
        """Return the hidden rows [m, hidden_size] that the head reads as well, by model."""
        hidden: dict[ModelName, NDArray[np.floating]] = {}
        results: Logprobs = {}
        for unit in self._units:
            ((values, logprobs),) = unit.run([batch], self._head_rows)
            hidden |= dict(zip(unit.models, map(as_numpy, values.values()), strict=True))
            results |= logprobs
        return hidden, results

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._units.clear()


class _Graphs:
    """The graphs over one weight file: opened one after the other, or kept open.

    `unsigned` opens those that read integer weights as unsigned numbers.
    """

    def __init__(
        self,
        folder: Path,
        unit: Unit,
        sessions: Sessions,
        *,
        ahead: bool,
        unsigned: bool,
        embed_on_host: bool,
    ) -> None:
        self._folder = folder
        self._unit = unit
        self._sessions = sessions
        self._ahead = ahead
        self._unsigned = unsigned
        self._embed_on_host = embed_on_host
        self._kept: dict[str, ort.InferenceSession] = {}

    @property
    def device(self) -> str:
        """Where values stay between two graphs."""
        return self._sessions.provider.value

    @property
    def embed_device(self) -> str:
        """Where rows are looked up."""
        return "cpu" if self._embed_on_host else self.device

    def keep(self, names: Iterable[str]) -> None:
        """Open these for good."""
        self._kept |= {name: self._open(name) for name in names}

    def get(self, name: str) -> ort.InferenceSession:
        """Return one that is kept, or open it."""
        return self._kept.get(name) or self._open(name)

    def in_turn(self, names: Sequence[str]) -> Generator[ort.InferenceSession, None, None]:
        """Give one after the other; the caller lets go of one before it asks for the next.

        What is not kept is opened ahead of its turn, in a thread: two are in memory at a time.
        """
        if self._kept:
            for name in names:
                yield self._kept[name]
        elif self._ahead:
            yield from self._opened_ahead(names)
        else:
            for index, name in enumerate(names):
                for following in names[index + 1 : index + 2]:
                    self._read_ahead(following)
                yield self._open(name)
                give_back_memory()

    def _opened_ahead(self, names: Sequence[str]) -> Generator[ort.InferenceSession, None, None]:
        done: list[ort.InferenceSession] = []
        with ThreadPoolExecutor(1, thread_name_prefix="stepscore-open") as pool:
            opening = pool.submit(self._exchange, done, names[0])
            for following in names[1:]:
                session = opening.result()
                opening = pool.submit(self._exchange, done, following)
                yield session
                done = [session]
                del session
            yield opening.result()

    def _exchange(self, done: list[ort.InferenceSession], name: str) -> ort.InferenceSession:
        """Open a graph after letting go of the one before: its packed weights take a while to give back."""
        done.clear()
        give_back_memory()
        self._read_ahead(name)
        return self._open(name)

    def _read_ahead(self, name: str) -> None:
        """Have the kernel read what a graph will touch."""
        extent = self._unit.extents[name]
        with (self._folder / WEIGHTS).open("rb") as weights:
            read_ahead(weights.fileno(), extent.offset, extent.size)

    def _open(self, name: str) -> ort.InferenceSession:
        on_host = name == EMBED and self._embed_on_host
        file = unsigned_file(name) if self._unsigned and name != EMBED else name
        return self._sessions.open(self._folder / file, on_host=on_host)


@dataclass(frozen=True, slots=True)
class _Stages:
    """The graphs that rows go through, in order, and those that each give a part of the log-probs."""

    layers: Sequence[str]
    heads: Sequence[str]


def _layer_by_layer(manifest: Manifest) -> _Stages:
    shape = manifest.architecture
    layers = [layer_file(index) for index in range(shape.num_hidden_layers)]
    return _Stages(layers, head_files(shape.vocab_size))


class _Unit:
    """One or both models: rows from graph to graph."""

    def __init__(self, unit: Unit, graphs: _Graphs, stages: _Stages) -> None:
        self.models = unit.models
        self._graphs = graphs
        self._stages = stages

    def keep(self) -> None:
        """Hold all graphs open from now on."""
        self._graphs.keep([EMBED, *self._stages.layers, *self._stages.heads])

    def run(self, window: Sequence[Batch], head_rows: int) -> list[tuple[Values, Logprobs]]:
        """Return hidden rows [m, hidden_size] (on the device) and log-probs of every batch."""
        rows = self._embedded(window)
        sums = [{model: LogProbs.of(batch) for model in self.models} for batch in window]
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
        rows = [_outputs(embed, _sizes(batch), self._graphs.embed_device) for batch in window]
        for batch, outputs in zip(window, rows, strict=True):
            _run(embed, {"input_ids": batch.input_ids}, {}, outputs)
        return rows

    def _layers(self, session: ort.InferenceSession, batch: Batch, rows: Values) -> Values:
        indices: dict[str, NDArray[Any]] = {
            "pad_index": batch.pad_index,
            "unpad_index": batch.unpad_index,
            "seqlens_k": batch.seqlens_k,
            "total_sequence_length": batch.total_sequence_length,
            "score_index": batch.score_index,
        }
        wanted = {value.name for value in session.get_inputs()}
        arrays = {key: indices[key] for key in indices.keys() & wanted}
        outputs = _outputs(session, _sizes(batch), self._graphs.device)
        _run(session, arrays, rows, outputs)
        return {key.removeprefix("next_"): value for key, value in outputs.items()}

    def _head(
        self,
        session: ort.InferenceSession,
        hidden: Values,
        batch: Batch,
        head_rows: int,
        sums: Mapping[ModelName, LogProbs],
    ) -> None:
        """Add what this part of the head says of the targets, at most `head_rows` rows at a time."""
        names = [value.name for value in session.get_outputs()]
        for part, rows, targets in chunks(batch, head_rows):
            outputs = _outputs(session, {"t": len(targets)}, "cpu")
            _run(session, {"rows": rows, "targets": targets}, hidden, outputs)
            for model, name in zip(self.models, names, strict=True):
                sums[model].add(part, outputs[name].numpy())


def _run(
    session: ort.InferenceSession, arrays: Mapping[str, NDArray[Any]], values: Values, outputs: Values
) -> None:
    """Run a graph on host arrays and OrtValues, into `outputs`."""
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    binding.synchronize_inputs()  # what is copied to a GPU is there before another stream reads it
    with naming_full_memory():
        session.run_with_iobinding(binding)


def _sizes(batch: Batch) -> dict[str, int]:
    """Return the axes of rows in graphs: computed ones and scored ones."""
    return {"n": len(batch.input_ids), "m": len(batch.score_index)}


def _outputs(session: ort.InferenceSession, sizes: Mapping[str, int], device: str) -> Values:
    """Make room for a graph's outputs; `sizes` says how long its named axes are.

    What ONNX Runtime makes by itself belongs to the session, and would hold its weights as long as the next
    layer reads it.
    """
    return {
        output.name: ort.OrtValue.ortvalue_from_shape_and_type(
            [sizes[axis] if isinstance(axis, str) else axis for axis in output.shape],
            _ELEMENTS[output.type],
            device,
        )
        for output in session.get_outputs()
    }

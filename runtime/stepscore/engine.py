"""A batch in, log-probs of both models out: ONNX Runtime sessions, residency, the chunked head.

Every unit of a pair runs the same way: embed on the host, body (or its layers, one by one), then the head
over chunks of the scored rows. Values travel between the graphs as OrtValues, so hidden rows never leave
the device. Graph inputs are bound by name; the engine does not know what a graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact import ModelName, Pair, layer_file
from stepscore.choices import Activations, Provider, Residency
from stepscore.plan import Batch, chunks, pack
from stepscore.provider import Sessions, require, require_exact_integers, resolve

HEAD_ROWS = 1024
"""Rows in one chunk of the head. Its graph holds logits for one tile of the vocabulary: 33 MB a copy."""
INTEGER_HEAD_ROWS = 256
"""The same for integer products, which hold more copies and need no more rows to be at full speed."""

Values = dict[str, ort.OrtValue]
Logprobs = dict[ModelName, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run; none of it changes a number by more than rounding.

    With int8 activations that is more than the last bits: another order of sums can move a row to the next
    code, and a log-prob by a few thousandths of a nat. The log-ratio stays within the pair's own error.
    """

    provider: Provider = Provider.AUTO
    residency: Residency = Residency.RESIDENT
    threads: int | None = None
    gpu_mem_limit: int | None = None
    head_rows: int | None = None


class Engine:
    """An open pair, ready to run batches."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        require(options.provider)  # what is missing on the machine is said before what the pair is for
        self.provider = resolve(options.provider, pair.manifest.target)
        require(self.provider)
        require_integers_of(pair)
        usual = INTEGER_HEAD_ROWS if has_int8_activations(pair) else HEAD_ROWS
        architecture = pair.manifest.architecture
        self._head_rows = options.head_rows or usual
        lean = options.residency is Residency.STREAM
        sessions = Sessions(self.provider, options.threads, options.gpu_mem_limit, lean)
        self._units = [
            _Unit(
                pair.path / unit.folder,
                unit.models,
                sessions,
                [layer_file(index) for index in range(architecture.num_hidden_layers)],
                options.residency,
            )
            for unit in pair.manifest.units
        ]

    def run(self, batch: Batch) -> Logprobs:
        """Return the log-probs (nats, float32 [t]) of a batch's (row, token) pairs, by model."""
        results: Logprobs = {}
        for unit in self._units:
            results |= unit.head(unit.body(batch), batch, self._head_rows)
        return results

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], Logprobs]:
        """Return the hidden rows [m, hidden_size] that the head reads as well, by model."""
        hidden: dict[ModelName, NDArray[np.floating]] = {}
        results: Logprobs = {}
        for unit in self._units:
            values = unit.body(batch)
            hidden |= dict(zip(unit.models, (value.numpy() for value in values.values()), strict=True))
            results |= unit.head(values, batch, self._head_rows)
        return hidden, results

    def logprobs(
        self, sequences: list[NDArray[np.int64]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return (policy, reference) log-probs [L-1] of each sequence [L], all in one batch."""
        batch = pack(sequences, [0] * len(sequences))
        results = self.run(batch)
        return [(results["policy"][span], results["reference"][span]) for span in batch.spans]

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._units.clear()


def require_integers_of(pair: Pair) -> None:
    """Raise ProviderUnavailable where the pair needs integer products that this CPU gets wrong."""
    if has_int8_activations(pair):
        require_exact_integers()


def has_int8_activations(pair: Pair) -> bool:
    """Return whether the pair's matrices are multiplied in integers."""
    difference = pair.manifest.difference
    return difference is not None and difference.activations is Activations.INT8


class _Unit:
    """The graphs over one weight file."""

    def __init__(
        self,
        folder: Path,
        models: tuple[ModelName, ...],
        sessions: Sessions,
        layers: list[str],
        residency: Residency,
    ) -> None:
        self.models = models
        self._folder = folder
        self._sessions = sessions
        resident = residency is Residency.RESIDENT
        self._stages = ["body.onnx"] if resident else layers
        self._keep = resident
        self._open: dict[str, ort.InferenceSession] = {}
        if resident:
            for name in ("embed.onnx", "body.onnx", "head.onnx"):
                self._session(name)

    def body(self, batch: Batch) -> Values:
        """Run everything but the head: the hidden rows [m, hidden_size], still on the device."""
        indices: dict[str, NDArray[Any]] = {
            "pad_index": batch.pad_index,
            "unpad_index": batch.unpad_index,
            "seqlens_k": batch.seqlens_k,
            "total_sequence_length": batch.total_sequence_length,
            "score_index": batch.score_index,
        }
        rows = _run(self._session("embed.onnx"), {"input_ids": batch.input_ids}, {}, "cpu")
        for name in self._stages:
            rows = self._stage(name, indices, rows)
        return rows

    def _stage(self, name: str, indices: Mapping[str, NDArray[Any]], rows: Values) -> Values:
        # In a function of its own: a session that is not kept is gone before the next is opened.
        session = self._session(name)
        wanted = {value.name for value in session.get_inputs()}
        arrays = {key: indices[key] for key in indices.keys() & wanted}
        outputs = _run(session, arrays, rows, self._device)
        return {key.removeprefix("next_"): value for key, value in outputs.items()}

    def head(self, hidden: Values, batch: Batch, head_rows: int) -> Logprobs:
        """Turn hidden rows into log-probs, at most `head_rows` rows at a time."""
        session = self._session("head.onnx")
        names = [value.name for value in session.get_outputs()]
        results = {model: np.empty(len(batch.target_ids), np.float32) for model in self.models}
        for part, rows, targets in chunks(batch, head_rows):
            outputs = _run(session, {"rows": rows, "targets": targets}, hidden, "cpu")
            for model, name in zip(self.models, names, strict=True):
                results[model][part] = outputs[name].numpy()
        return results

    @property
    def _device(self) -> str:
        return self._sessions.provider.value

    def _session(self, name: str) -> ort.InferenceSession:
        session = self._open.get(name)
        if session is None:
            session = self._sessions.open(self._folder / name, on_host=name == "embed.onnx")
            if self._keep:
                self._open[name] = session
        return session


def _run(
    session: ort.InferenceSession, arrays: Mapping[str, NDArray[Any]], values: Values, outputs_on: str
) -> Values:
    """Run a graph on host arrays and OrtValues; its outputs stay on `outputs_on`."""
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, outputs_on)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))

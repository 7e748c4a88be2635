"""Weights of a stage in the type that graphs compute in: taken as stored, dequantized, or decoded.

What is not taken as it is stored is written to one scratch buffer, the reference's weights first. The
policy's are made of them in place: base + difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.generic_graphs import Decoder
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.tensor_table import (
    BlockForm,
    DifferenceForm,
    FloatForm,
    Form,
    LosslessForm,
    StoredMatrix,
    TwoForms,
    entries,
)
from stepscore.engine.cuda.device import Buffer, Tensor, aligned, run_graph
from stepscore.engine.cuda.hardware import Hardware
from stepscore.engine.cuda.lossless_decoder import StoredDifference
from stepscore.engine.cuda.weight_ring import LoadedStage
from stepscore.engine.element_types import BITS, FLOAT
from stepscore.engine.ort.sessions import Sessions

Weights = dict[str, Tensor]


class OpenGraphs:
    """Sessions of generic graphs: files with the same content, of either model, share one."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._known: dict[tuple[bytes, bool], ort.InferenceSession] = {}

    def open(self, path: Path, *, use_tf32: bool = False) -> ort.InferenceSession:
        """Return the session of a graph whose weights are inputs."""
        content = path.read_bytes()
        if (content, use_tf32) not in self._known:
            self._known[content, use_tf32] = self._sessions.open(path, use_tf32=use_tf32)
        return self._known[content, use_tf32]

    def open_on_host(self, path: Path) -> ort.InferenceSession:
        """Open a graph over the weight file beside it, to run on the CPU."""
        return self._sessions.open(path, on_host=True)


class GraphFiles:
    """The generic graphs of one unit, by name."""

    def __init__(self, folder: Path, graphs: OpenGraphs, *, in_fp32: bool) -> None:
        self._folder = folder
        self._graphs = graphs
        self._in_fp32 = in_fp32
        self._known: dict[str, ort.InferenceSession] = {}

    def open(self, name: str, *, use_tf32: bool = False) -> ort.InferenceSession:
        """Return the session of a graph whose weights are inputs."""
        if name not in self._known:
            self._known[name] = self._graphs.open(self._path(name), use_tf32=use_tf32)
        return self._known[name]

    def embed(self) -> ort.InferenceSession:
        """Open the embedding, which reads the weight file and runs on the host."""
        return self._graphs.open_on_host(self._path(names.EMBED_GRAPH))

    def _path(self, name: str) -> Path:
        return self._folder / names.generic_file(name, in_fp32=self._in_fp32)


def scratch_bytes(matrices: Mapping[str, StoredMatrix], compute: int) -> int:
    """Return the bytes of scratch that a stage needs."""
    decoded = (matrix for matrix in matrices.values() if is_decoded(matrix.form, compute))
    return sum(aligned(matrix.rows * matrix.columns * BITS[compute] // 8) for matrix in decoded)


def is_decoded(form: Form, compute: int) -> bool:
    """Return whether a matrix is written to the scratch, instead of being read where it is stored."""
    return compute == FLOAT or not isinstance(form, FloatForm | TwoForms)


class Decoding:
    """Decodes the stages of one unit into a scratch buffer that units share."""

    def __init__(self, hardware: Hardware, graphs: GraphFiles, scratch: Buffer) -> None:
        self._device = hardware.device
        self._graphs = graphs
        self._scratch = scratch
        self._compute = hardware.compute
        self._lossless = hardware.lossless

    def of(self, loaded: LoadedStage, models: Sequence[ModelName]) -> Iterator[tuple[ModelName, Weights]]:
        """Yield the matrices of every model of the unit, in order; those before it are overwritten."""
        for model in models:
            weights, end = {}, 0
            for name, matrix in loaded.stage.matrices.items():
                start = end
                if is_decoded(matrix.form, self._compute):
                    end += aligned(matrix.rows * matrix.columns * BITS[self._compute] // 8)
                weights[name] = self._weight(loaded, matrix, model, start)
            yield model, weights

    def _weight(self, loaded: LoadedStage, matrix: StoredMatrix, model: ModelName, at: int) -> Tensor:
        match matrix.form:
            case FloatForm(values):
                return self._floats(loaded.tensor(values), at)
            case TwoForms(reference, policy):
                return self._floats(loaded.tensor(policy if model == "policy" else reference), at)
            case BlockForm() as blocks:
                return self._dequantized(loaded, blocks, self._target(matrix, at))
            case DifferenceForm(base, difference):
                target = self._target(matrix, at)
                return self._dequantized(loaded, difference if model == "policy" else base, target)
            case LosslessForm() as form:
                if model == "reference":
                    return self._floats(loaded.tensor(form.reference), at)
                return self._policy_bits(loaded, form, at)

    def _target(self, matrix: StoredMatrix, at: int) -> Tensor:
        return self._scratch.tensor((matrix.rows, matrix.columns), self._compute, at)

    def _floats(self, stored: Tensor, at: int) -> Tensor:
        """Return a stored matrix, widened where graphs compute in fp32."""
        if stored.element_type == self._compute:
            return stored
        target = self._scratch.tensor(stored.shape, self._compute, at)
        run_graph(self._graphs.open(names.CAST), {names.CODES: stored}, {names.WEIGHT: target}, self._device)
        return target

    def _policy_bits(self, loaded: LoadedStage, form: LosslessForm, at: int) -> Tensor:
        parts = StoredDifference(*map(loaded.tensor, entries(form)))
        stored = parts.reference
        if stored.element_type == self._compute:
            target = self._scratch.tensor(stored.shape, self._compute, at)
            self._lossless.decode(parts, target)
            return target
        bits = self._device.allocate(stored.num_bytes)
        narrow = bits.tensor(stored.shape, stored.element_type)
        self._lossless.decode(parts, narrow)
        target = self._floats(narrow, at)
        self._device.give_back(bits)
        return target

    def _dequantized(self, loaded: LoadedStage, blocks: BlockForm, target: Tensor) -> Tensor:
        decoder, codes, scales = blocks.decoder, loaded.tensor(blocks.codes), loaded.tensor(blocks.scales)
        whole = decoder.bits == names.TABLE_BITS  # rows are blocks
        if whole:
            codes = codes.viewed(*_blocked(codes.shape, decoder))
            scales = scales.viewed(codes.shape[0])
        inputs: dict[str, Tensor | NDArray[Any]] = {names.CODES: codes, names.SCALES: scales}
        if blocks.zeros is not None:
            inputs[names.ZEROS] = loaded.tensor(blocks.zeros)
        written = target
        if decoder.padded:
            inputs[names.NUM_COLUMNS] = np.array([target.shape[1]])
            if whole:
                inputs[names.NUM_ROWS] = np.array([target.shape[0]])
        elif whole:
            written = target.viewed(*_blocked(target.shape, decoder))
        if decoder.add:
            inputs[names.BASE] = written
        run_graph(self._graphs.open(decoder.name), inputs, {names.WEIGHT: written}, self._device)
        return target


def _blocked(shape: tuple[int, ...], decoder: Decoder) -> tuple[int, int]:
    rows, columns = shape
    return rows * columns // decoder.block_size, decoder.block_size

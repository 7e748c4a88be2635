"""Write a hollow pair of the real size: real graphs, work and memory, random weights, little disk.

A GPU machine that is lent for minutes cannot receive 30 GB of weights, nor make and export them in time. The
export's own code writes the pair; only its weight file differs: matrices repeat a short block of random
numbers, and all layers refer to the bytes of the first. Each layer still has separate initializers, which
need as much device memory as different ones; a streamed layer is read from the page cache. Rewards of such a
pair are meaningless. Its checkpoints are sparse files of zeros that use no disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from benchmarks.support.shapes import write_tokenizer_of
from numpy.typing import NDArray
from testing.checkpoints import config_json, write_json

from stepscore.artifact.graph_contract import WEIGHTS
from stepscore.artifact.manifest import MANIFEST, TOKENIZER, Distance, FileEntry
from stepscore.artifact.pair import Pair
from stepscore_export.backends.base import StoredUnit
from stepscore_export.backends.onnx import OnnxBackend
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members
from stepscore_export.families.base import DecoderConfig, tensor_shapes
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.manifest import manifest_of
from stepscore_export.quantization.error_propagation import NoStatistics
from stepscore_export.weights.weight_file import ALIGNMENT, TensorRef, numpy_dtype

DISTANCE = 0.005
BLOCK_BYTES = 1 << 23
SEED = 1


def write_hollow_pair(folder: Path, shape: DecoderConfig, options: ExportOptions) -> Path:
    """Write the pair to `folder` / pair, and its checkpoints next to it."""
    paths = {name: write_hollow_checkpoint(folder / name, shape) for name in ("policy", "reference")}
    output = folder / "pair"
    distance = Distance(DISTANCE, {})
    backend = OnnxBackend(options).resolve(distance, calibrated=False)
    with Checkpoint.open(paths["policy"]) as policy, Checkpoint.open(paths["reference"]) as reference:
        checkpoints: Members = {"policy": policy, "reference": reference}
        files: dict[str, FileEntry] = {}

        def write(name: str, data: bytes) -> None:
            (output / name).write_bytes(data)
            files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

        units = []
        for name, members in backend.units(checkpoints).items():
            (output / name).mkdir(parents=True)
            with RandomWeights(output / name / WEIGHTS) as file:
                weights = backend.write_unit(members, file, NoStatistics(), lambda _count: None)
            files[f"{name}/{WEIGHTS}"] = FileEntry(file.num_bytes, "0" * 64)
            unit = StoredUnit(name, members, weights, weights.extents())
            for graph, model in backend.graphs(unit):
                write(f"{name}/{graph}", ir.to_proto(model).SerializeToString(deterministic=True))
            units.append(unit)
        write(TOKENIZER, policy.tokenizer_json().encode())
        manifest = manifest_of(
            checkpoints,
            template=prompt_template(policy)[0],
            distance=distance,
            storage=backend.storage,
            units=units,
            files=files,
        )
        (output / MANIFEST).write_bytes(manifest.encode())
    return Pair.open(output).path


def write_hollow_checkpoint(folder: Path, shape: DecoderConfig) -> Path:
    """Write a checkpoint whose tensors are a hole in a sparse file."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config_json(shape, dtype="bfloat16"))
    write_tokenizer_of(folder)
    header, end = {}, 0
    for name, size in tensor_shapes(shape).items():
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


class RandomWeights:
    """A weight file of random matrices in which all layers share the bytes of the first (a TensorSink)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._random = np.random.default_rng(SEED)
        self._normals = self._random.standard_normal(BLOCK_BYTES // 4, dtype=np.float32)
        self._known: dict[str, int] = {}
        self.num_bytes = 0

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Write a tensor, unless it is of a later layer; `blocks` are read only if they are small."""
        key = re.sub(r"^layers\.\d+\.", "layers.0.", name)
        if key not in self._known:
            self._file.write(b"\0" * (-self.num_bytes % ALIGNMENT))
            self._known[key] = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
            ref = TensorRef(name, dtype, shape, self._known[key])
            self._write(self._content(key, dtype, shape, blocks), ref.num_bytes)
            self.num_bytes = ref.offset + ref.num_bytes
        return TensorRef(name, dtype, shape, self._known[key])

    def _content(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> bytes:
        """Return bytes that are repeated until the tensor is full."""
        if name.startswith("rotary"):
            return b"".join(np.ascontiguousarray(block).tobytes() for block in blocks)
        if name.endswith((".codes", ".zeros")):
            return self._random.bytes(BLOCK_BYTES)
        if name.endswith(".scales"):  # RMS of uniform codes, so that weights have an RMS of 1 / 60
            codes = 4.6 if ".difference" in name else 73
            size = DISTANCE if ".difference" in name else 1.0
            return np.full(BLOCK_BYTES // 4, size / 60 / codes).astype(numpy_dtype(dtype)).tobytes()
        if len(shape) == 1:
            value = 0.0 if "bias" in name else 1.0
            return np.full(shape, value).astype(numpy_dtype(dtype)).tobytes()
        return (self._normals / math.sqrt(shape[-1])).astype(numpy_dtype(dtype)).tobytes()

    def _write(self, content: bytes, num_bytes: int) -> None:
        whole, rest = divmod(num_bytes, len(content))
        for _ in range(whole):
            self._file.write(content)
        self._file.write(content[:rest])

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

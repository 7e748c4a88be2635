"""Write a hollow pair of the real size: real graphs, work and memory, random weights, little disk.

A GPU machine that is lent for minutes cannot receive 30 GB of weights, nor make and export them in time. The
export's own code writes the pair; only its weight file differs (hollow_weights.py): matrices repeat a short
block of random numbers, and all layers are the bytes of the first. Each layer still needs as much device
memory as a different one would; a streamed layer is read from the page cache. Rewards of such a pair are
meaningless. Its checkpoints are sparse files of zeros that use no disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import onnx_ir as ir
from benchmarks.support.hollow_weights import DISTANCE, RandomWeights, hollow_unit
from benchmarks.support.shapes import write_tokenizer_of
from testing.checkpoints import config_json, write_json

from stepscore.artifact.graph_contract import WEIGHTS
from stepscore.artifact.manifest import MANIFEST, TOKENIZER, Distance, FileEntry
from stepscore.artifact.pair import SMALL_BYTES, Pair
from stepscore.artifact.tensor_table import TENSORS
from stepscore_export.backends.base import StoredUnit
from stepscore_export.backends.cuda import CudaBackend
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import DecoderConfig, tensor_shapes
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.manifest import manifest_of
from stepscore_export.weights.tensor_names import tensor_table


def write_hollow_pair(folder: Path, shape: DecoderConfig, options: ExportOptions) -> Path:
    """Write a pair for CUDA to `folder` / pair, and its checkpoints next to it."""
    paths = {name: write_hollow_checkpoint(folder / name, shape) for name in ("policy", "reference")}
    output = folder / "pair"
    distance = Distance(DISTANCE, {})
    backend = CudaBackend(options).resolve(distance, calibrated=False)
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
                weights = hollow_unit(members, file, backend.options)
            small = file.num_bytes <= SMALL_BYTES  # those are compared when the pair is opened
            digest = hashlib.sha256((output / name / WEIGHTS).read_bytes()).hexdigest() if small else "0" * 64
            files[f"{name}/{WEIGHTS}"] = FileEntry(file.num_bytes, digest)
            write(f"{name}/{TENSORS}", tensor_table(weights, tuple(members)))
            unit = StoredUnit(name, members, weights, weights.extents())
            for graph, model in backend.graphs(unit):
                write(f"{name}/{graph}", ir.to_proto(model).SerializeToString(deterministic=True))
            units.append(unit)
        write(TOKENIZER, policy.tokenizer_json().encode())
        manifest = manifest_of(
            checkpoints,
            template=prompt_template(policy)[0],
            prefix_tokens=0,
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

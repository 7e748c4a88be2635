"""Reads safetensors: tensors are located and validated from headers, and read a row block at a time."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe
from stepscore_export.checkpoint.folder_contents import no_weights
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Types that models are trained and published in. Narrower ones have lost the difference a reward is made of.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Location of a tensor's bytes; `dtype` is safetensors' code, `offset` counts from the file's start."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Type of the data, for a dtype that can be read."""
        return _DTYPES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Size of the data, for a dtype that can be read."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize


def locate_tensors(folder: CheckpointFolder) -> dict[str, StoredTensor]:
    """Return every tensor of the checkpoint by its stored name; reads headers only."""
    if not folder.has(INDEX):
        if not folder.has(SINGLE_FILE):
            raise no_weights(folder)
        return read_header(folder, SINGLE_FILE)
    weight_map = _weight_map(folder)
    if folder.has(SINGLE_FILE):  # as transformers: the single file wins over an index
        tensors = read_header(folder, SINGLE_FILE)
        _check_single(tensors, weight_map)
        return tensors
    headers = {file: read_header(folder, file) for file in sorted(set(weight_map.values()))}
    tensors = {}
    for file, header in headers.items():
        for name, tensor in header.items():
            if name in tensors:
                raise _inconsistent(f"{name} is in both {tensors[name].path.name} and {file}")
            if weight_map.get(name) != file:
                raise _inconsistent(f"{name} is in {file}, but {INDEX} does not say so")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors:
            raise _inconsistent(f"{name} is not in {file}, where {INDEX} says it is")
    return tensors


def _weight_map(folder: CheckpointFolder) -> dict[str, str]:
    weight_map = folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointCorrupt(
            f"{INDEX} has no `weight_map` from tensor names to file names", hint="download it again"
        )
    return weight_map


def _check_single(tensors: Mapping[str, StoredTensor], weight_map: Mapping[str, str]) -> None:
    """Raise CheckpointCorrupt where a single file holds less than the index beside it names."""
    left_out = weight_map.keys() - tensors.keys()
    if left_out:
        raise CheckpointCorrupt(
            f"{SINGLE_FILE} holds {len(tensors)} tensors and not {min(left_out)}, but {INDEX} beside it "
            f"names {len(weight_map)} in other files",
            hint="a trainer with ZeRO-3 leaves such a stub: if the other files are the model, remove "
            f"{SINGLE_FILE}",
        )


def check_tensor(tensor: StoredTensor, shape: tuple[int, ...], *, by: str = "config.json") -> None:
    """Raise CheckpointCorrupt unless the tensor has the shape that `by` gives, and a known dtype."""
    if tensor.dtype not in _DTYPES:
        raise CheckpointCorrupt(
            f"{tensor.name} is stored as {tensor.dtype}, expected one of {', '.join(_DTYPES)}",
            hint="export from the original fp32, bf16 or fp16 checkpoint",
        )
    if tensor.shape == shape:
        return
    hint = None
    if 0 in tensor.shape:
        hint = (
            "a trainer with ZeRO-3 saved an empty placeholder: python zero_to_fp32.py CHECKPOINT MERGED "
            "--safe_serialization makes a model of the whole checkpoint"
        )
    elif tensor.shape[1:] == shape[1:]:
        hint = f"if the tensor was resized after {by} was written, set its size there"
    raise CheckpointCorrupt(
        f"{tensor.name} has shape {list(tensor.shape)}, expected {list(shape)} by {by}", hint=hint
    )


def read_rows(file: IO[bytes], tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Read rows [start:stop] of a tensor as finite float32 from its unbuffered, open file.

    It is not mapped: mapped pages would count as resident memory. Raises CheckpointCorrupt naming the
    tensor where the file ends early or a value is NaN or infinite.
    """
    dtype, row = _DTYPES[tensor.dtype], tensor.shape[1:]
    stored = np.empty((stop - start, *row), dtype)
    if stored.size == 0:
        return stored.astype(np.float32)
    file.seek(tensor.offset + start * math.prod(row) * dtype.itemsize)
    view = stored.reshape(-1).view(np.uint8).data
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]  # every unbuffered file has it
        if not count:
            raise CheckpointCorrupt(
                f"{tensor.path.name} ends inside {tensor.name}: it was truncated while it was read"
            )
        view = view[count:]
    with np.errstate(invalid="ignore"):
        values = stored.astype(np.float32, copy=False)
        # NaN passes through min and max, which need no array of flags.
        finite = np.isfinite(values.min()) and np.isfinite(values.max())
    if not finite:
        raise CheckpointCorrupt(
            f"{tensor.name} holds NaN or infinite values in rows {start} to {stop - 1}",
            hint="the checkpoint was damaged or its training diverged; use another revision",
        )
    return values


def read_header(folder: CheckpointFolder, file: str) -> dict[str, StoredTensor]:
    """Validate one file with safetensors' own rules, then read the offsets, which its API does not give."""
    if not file.endswith(".safetensors"):
        raise CheckpointUnsafe(f"{INDEX} names {file!r}: only .safetensors files are read, never pickles")
    path = folder.file(file)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointCorrupt(
            f"{file} is not a complete safetensors file: {error}",
            hint="download it again (a file of a few hundred bytes is a Git LFS pointer: `git lfs pull`)",
        ) from None
    with path.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = msgspec.json.decode(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def _inconsistent(message: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        message, hint="download or save it again into an empty folder: files of two checkpoints may be mixed"
    )

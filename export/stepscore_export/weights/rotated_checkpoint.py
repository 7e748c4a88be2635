"""A checkpoint seen through a rotation: the same model, its weights without outlier channels.

Every RMS norm's scale is folded into the matrices that read it, and the residual stream is rotated by R; the
values of each head are rotated by S between the two matrices around them:

    q, k, gate, up, head    W diag(scale) R            o    R^T W (I x S)
    v                       (I x S^T) W diag(scale) R  down R^T W

The embedding stays as it is stored: the embed graph multiplies the rows it has looked up with R. Norms of the
residual stream have the scale 1; those of query and key, which follow the projection, stay as they are. A
tied head is a matrix of its own here. Nothing is held but one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import Source
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.families.base import EMBEDDING, FINAL_NORM, HEAD
from stepscore_export.quantization.rotation import Rotation
from stepscore_export.quantization.rounding import Floats

RESIDUAL_SEED, VALUES_SEED = 1, 2
COLUMNS_AT_ONCE = 1024
"""Columns of a matrix that are rotated at a time: bounds what a product holds."""

_NORM_BEFORE = {
    "self_attn": "input_layernorm.weight",
    "mlp": "post_attention_layernorm.weight",
}

# What comes after the projection of queries and keys, whose heads are not rotated.
_UNROTATED = frozenset({"q_proj.bias", "k_proj.bias", "q_norm.weight", "k_norm.weight"})


class RotatedCheckpoint:
    """Reads like the checkpoint that it is made of; both models of a pair take the same rotations."""

    def __init__(self, checkpoint: WeightSource) -> None:
        config = checkpoint.config
        self.original = checkpoint
        self.source: Source = checkpoint.source
        self.folder = checkpoint.folder
        self.family = checkpoint.family
        self.config = replace(config, tie_word_embeddings=False)
        self.residual = Rotation.random(config.hidden_size, RESIDUAL_SEED)
        self.values = Rotation.random(config.head_dim, VALUES_SEED)
        self._held: tuple[str, Floats] | None = None

    @property
    def head_name(self) -> str:
        """Name of the matrix that turns hidden rows into logits."""
        return HEAD

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.original.shape(self._stored_name(name))

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type that holds a tensor: the embedding's own, float32 for what is computed."""
        return self.original.dtype(name) if name == EMBEDDING else np.dtype(np.float32)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start:stop] of a tensor, rotated, as float32; CheckpointCorrupt if a value is not finite."""
        start, stop, _ = slice(start, stop).indices(self.shape(name)[0])
        if name == EMBEDDING:
            return self.original.rows(name, start, stop)
        if name == FINAL_NORM or name.endswith(tuple(_NORM_BEFORE.values())):
            return np.ones(stop - start, np.float32)
        if name == HEAD:
            return self._reading(self._stored_name(name), FINAL_NORM, start, stop)
        layer, block, kind = _parts(name)
        if kind in {"o_proj.weight", "down_proj.weight", "v_proj.weight", "v_proj.bias"}:
            return self._part_of_whole(name, start, stop)
        if kind in _UNROTATED:
            return self.original.rows(name, start, stop)
        return self._reading(name, f"{layer}.{_NORM_BEFORE[block]}", start, stop)

    def embedded(self, rows: Floats) -> Floats:
        """Return looked-up rows [n, H] of the embedding as they enter the first layer."""
        return self.residual.apply(rows)

    def values_as_stored(self, values: Floats) -> Floats:
        """Return attention values [n, kv_heads * D], those of each head rotated."""
        return self.values.apply(values.reshape(len(values), -1, self.values.size)).reshape(values.shape)

    def head_input(self, normed: Floats) -> Floats:
        """Return normed rows [n, H], rotated: the scale is folded into the head."""
        return self.residual.apply(normed)

    def rotation_matrix(self) -> Floats | None:
        """Return what looked-up rows are multiplied with, float32 [H, H]."""
        return self.residual.matrix()

    def read_ahead(self, names: Iterable[str]) -> None:
        """Have the kernel read tensors in the background that `rows` will be asked for next."""
        self.original.read_ahead(map(self._stored_name, names))

    def naming(self) -> AbstractContextManager[None]:
        """Have errors raised in this context say which model of the pair this is."""
        return self.original.naming()

    def num_bytes(self) -> int:
        """Size of the model's tensors as stored."""
        return self.original.num_bytes()

    def parameters(self) -> int:
        """Count the numbers in the model's tensors, a tied head once."""
        return self.original.parameters()

    def _stored_name(self, name: str) -> str:
        return self.original.head_name if name == HEAD else name

    def _reading(self, name: str, norm: str, start: int, stop: int) -> Floats:
        """Rows of a matrix that reads the normed residual stream."""
        return self.residual.apply(self.original.rows(name, start, stop) * self.original.rows(norm))

    def _part_of_whole(self, name: str, start: int, stop: int) -> Floats:
        """Rows of a matrix whose rows are mixed; held until its last row or another one is asked for."""
        if self._held is None or self._held[0] != name:
            self._held = None
            self._held = name, self._mixed(name)
        whole = self._held[1]
        if stop == len(whole):
            self._held = None
        return whole if stop - start == len(whole) else whole[start:stop].copy()

    def _mixed(self, name: str) -> Floats:
        layer, _, kind = _parts(name)
        rows = self.original.rows(name)
        if kind == "v_proj.bias":
            return self.values.apply(rows.reshape(-1, self.values.size)).reshape(-1)
        if kind == "v_proj.weight":
            rows = self.residual.apply(rows * self.original.rows(f"{layer}.{_NORM_BEFORE['self_attn']}"))
            by_head = rows.reshape(-1, self.values.size, rows.shape[1])
            for head in by_head:
                head[:] = self.values.transposed(head)
            return rows
        step = max(1, COLUMNS_AT_ONCE // self.values.size) * self.values.size
        for start in range(0, rows.shape[1], step):
            columns = slice(start, start + step)
            block = rows[:, columns]
            if kind == "o_proj.weight":
                block = self.values.apply(block.reshape(len(rows), -1, self.values.size)).reshape(block.shape)
            rows[:, columns] = self.residual.transposed(block)
        return rows


def _parts(name: str) -> tuple[str, str, str]:
    """Split a tensor's name: model.layers.3.mlp.up_proj.weight -> (model.layers.3, mlp, up_proj.weight)."""
    layer, block, *kind = name.rsplit(".", 3)
    return layer, block, ".".join(kind)

"""What both models make of the tokens that every record begins with, computed once from the original weights.

The file is a NumPy archive (.npz) of `token_ids` and, for each model, `MODEL.keys_values`, `MODEL.hidden` and
`MODEL.logprobs`. A pair lists it in its manifest like every other file, with its hash.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import Architecture, ModelName
from stepscore.errors import ManifestInvalid

T = TypeVar("T", np.float32, np.int64)

_MODELS: tuple[ModelName, ...] = ("policy", "reference")


@dataclass(frozen=True, slots=True)
class ModelPrefix:
    """What one model makes of the P tokens of the prefix, float32.

    `keys_values` [layers, P, 2 * kv_heads * head_dim] are keys, before rotary embedding, then values;
    `hidden` [P, hidden_size] is what the head reads; `logprobs` [P] (nats) are those of the tokens
    themselves, each after those before it: the first one's is 0, since no log-prob scores it.
    """

    keys_values: NDArray[np.float32]
    hidden: NDArray[np.float32]
    logprobs: NDArray[np.float32]

    @classmethod
    def empty(cls, num_layers: int, width: int, hidden_size: int) -> ModelPrefix:
        """Return the results of no tokens; `width` is 2 * kv_heads * head_dim."""
        shapes = (num_layers, 0, width), (0, hidden_size), (0,)
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))


@dataclass(frozen=True, slots=True)
class Prefix:
    """The tokens, int64 [P], and what each model makes of them."""

    token_ids: NDArray[np.int64]
    models: Mapping[ModelName, ModelPrefix]

    def encode(self) -> bytes:
        """Return the bytes of the file: the same for the same numbers."""
        arrays: dict[str, NDArray[np.generic]] = {"token_ids": self.token_ids}
        for name, model in self.models.items():
            arrays[f"{name}.keys_values"] = model.keys_values
            arrays[f"{name}.hidden"] = model.hidden
            arrays[f"{name}.logprobs"] = model.logprobs
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def decode(cls, data: bytes, shape: Architecture, num_tokens: int) -> Prefix:
        """Read the file of a pair of this shape; ManifestInvalid where it holds anything else."""
        width = 2 * shape.num_key_value_heads * shape.head_dim
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                token_ids = _checked(arrays, "token_ids", (num_tokens,), np.int64)
                models = {
                    name: ModelPrefix(
                        _checked(
                            arrays,
                            f"{name}.keys_values",
                            (shape.num_hidden_layers, num_tokens, width),
                            np.float32,
                        ),
                        _checked(arrays, f"{name}.hidden", (num_tokens, shape.hidden_size), np.float32),
                        _checked(arrays, f"{name}.logprobs", (num_tokens,), np.float32),
                    )
                    for name in _MODELS
                }
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ManifestInvalid(
                f"prefix.npz cannot be read: {error}", hint="export the pair again, or copy it again, whole"
            ) from None
        return cls(token_ids, models)


def _checked(
    arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], dtype: type[T]
) -> NDArray[T]:
    array = arrays[name]
    if array.shape != shape or array.dtype != dtype:
        found, expected = f"{array.dtype} {list(array.shape)}", f"{dtype.__name__} {list(shape)}"
        raise ValueError(f"{name} is {found}, expected {expected}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return array

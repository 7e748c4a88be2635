"""Reads a LoRA adapter that lies beside the weights it belongs to, and merges it, row block by row block.

    W' = W + s B A        W [out, in], A [rank, in], B [out, rank]
    s = alpha / rank, or alpha / sqrt(rank) with `use_rslora`

computed in float64 and rounded to float32 once: the model that peft runs, without the rounding of its merge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe, UnsupportedArchitecture
from stepscore_export.checkpoint.safetensors_reader import StoredTensor, check_tensor, read_header
from stepscore_export.checkpoint.tensor_names import bare_name
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.families.base import EMBEDDING, Json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROWS_AT_ONCE = 256
"""Bounds what a merge holds in float64."""

_SAVED = f"use the {CONFIG} that peft saved with the adapter, or save the merged model"
_TOO_LARGE = 2**31

_A, _B = ".lora_A.weight", ".lora_B.weight"
# Keys that change nothing of W' beyond what is read here. Any other key that is set is a variant of LoRA.
_PLAIN_KEYS = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"),
        *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *(
            "base_model_name_or_path",
            "revision",
            "task_type",
            "inference_mode",
            "auto_mapping",
            "peft_version",
        ),
        *("megatron_core", "qalora_group_size", "eva_config"),
    }
)
# Others, such as PiSSA and OLoRA, have changed the weights that the adapter belongs to.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_MERGE = "save the merged model: peft's merge_and_unload(), then save_pretrained"


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter: its scale s, and the stored A and B of each matrix that it changes."""

    rank: int
    alpha: float
    scale: float
    factors: Mapping[str, tuple[StoredTensor, StoredTensor]]

    def num_bytes(self) -> int:
        """Return the size of the adapter's tensors as stored."""
        return sum(factor.num_bytes for pair in self.factors.values() for factor in pair)


def read_lora(folder: CheckpointFolder, shapes: Mapping[str, tuple[int, ...]]) -> Lora | None:
    """Return the adapter in a model's folder, None if there is none.

    Raises UnsupportedArchitecture by the name of the key or tensor that plain LoRA on matrices of the model
    does not have, CheckpointCorrupt for what is missing or damaged, CheckpointUnsafe for a pickle.
    """
    if not folder.has(CONFIG):
        if stray := folder.names("adapter_model*"):
            raise CheckpointCorrupt(
                f"{stray[0]} lies beside the weights, but not {CONFIG}, which has its rank and alpha",
                hint=f"add {CONFIG}, or remove the adapter if the weights already contain it",
            )
        return None
    config = folder.json(CONFIG)
    _check_is_plain(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank < _TOO_LARGE:
        raise CheckpointCorrupt(f"{CONFIG}: r is {rank!r}, expected a positive integer", hint=_SAVED)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < _TOO_LARGE:
        raise CheckpointCorrupt(f"{CONFIG}: lora_alpha is {alpha!r}, expected a positive number", hint=_SAVED)
    if (rslora := config.get("use_rslora")) not in (None, True, False):
        raise CheckpointCorrupt(f"{CONFIG}: use_rslora is {rslora!r}, expected true or false", hint=_SAVED)
    if not folder.has(WEIGHTS):
        if folder.has("adapter_model.bin"):
            raise CheckpointUnsafe(
                "the adapter is a pickle (adapter_model.bin), and loading a pickle can run code", hint=_MERGE
            )
        raise CheckpointCorrupt(
            f"{CONFIG} lies beside the weights, but not {WEIGHTS}",
            hint=f"add {WEIGHTS}, or remove {CONFIG} if the weights already contain the adapter",
        )
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    return Lora(rank, float(alpha), scale, _factors(read_header(folder, WEIGHTS), shapes, rank))


def merge(
    rows: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32], scale: float
) -> NDArray[np.float32]:
    """Return rows of W' from the same rows of W and of B; a few rows at a time, in float64."""
    merged, right = np.empty_like(rows), a.astype(np.float64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        with np.errstate(over="ignore"):  # the reader rejects what is not finite
            merged[part] = rows[part] + scale * (b[part].astype(np.float64) @ right)
    return merged


def _check_is_plain(config: Json) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedArchitecture(f"{CONFIG}: peft_type is {kind!r}; only 'LORA' is merged", hint=_MERGE)
    faults = {key: value for key, value in config.items() if value and key not in _PLAIN_KEYS}
    if config.get("bias", "none") != "none":
        faults["bias"] = config["bias"]
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        faults["init_lora_weights"] = config["init_lora_weights"]
    if faults:
        key, value = next(iter(faults.items()))
        raise UnsupportedArchitecture(
            f"{CONFIG}: {key} is {repr(value)[:80]}; only plain LoRA is merged", hint=_MERGE
        )


def _factors(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], rank: int
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    matrices = {name.removesuffix(".weight"): name for name, shape in shapes.items() if len(shape) == 2}
    del matrices[EMBEDDING.removesuffix(".weight")]  # its factors are lora_embedding_A and lora_embedding_B
    found: dict[str, dict[str, StoredTensor]] = {}
    for stored, tensor in tensors.items():
        bare = bare_name(stored)
        module, side = (bare.removesuffix(_A), _A) if bare.endswith(_A) else (bare.removesuffix(_B), _B)
        matrix = matrices.get(f"model.{module}") or matrices.get(module)
        if matrix is None or not bare.endswith(side) or side in found.get(matrix, {}):
            raise UnsupportedArchitecture(
                f"{WEIGHTS} has {stored}, which is not the one factor of a matrix of the model",
                hint=_MERGE,
            )
        out, columns = shapes[matrix]
        check_tensor(tensor, (rank, columns) if side == _A else (out, rank), by=CONFIG)
        found.setdefault(matrix, {})[side] = tensor
    for matrix, factors in found.items():
        for side in {_A, _B} - factors.keys():
            raise CheckpointCorrupt(
                f"{WEIGHTS} has no {matrix.removesuffix('.weight') + side}, but its other factor",
                hint="download or save the adapter again",
            )
    if not found:
        raise CheckpointCorrupt(f"{WEIGHTS} holds no tensors", hint="download or save the adapter again")
    return {matrix: (factors[_A], factors[_B]) for matrix, factors in found.items()}

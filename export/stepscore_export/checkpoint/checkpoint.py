"""A Hugging Face checkpoint of a Qwen2 causal language model, checked when opened, read in row blocks.

    with Checkpoint.open("Qwen/Qwen2.5-Math-7B-Instruct@main") as checkpoint:
        checkpoint.config.hidden_size
        checkpoint.rows("lm_head.weight", 0, 4096)      # float32, finite

Opening reads headers and JSON, no weights: names, shapes, dtypes and the tokenizer are right from then on.
Pickles and code are never loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName, Source
from stepscore.errors import CheckpointCorrupt, PairIncompatible, UnsupportedArchitecture
from stepscore.fileio import read_ahead
from stepscore_export.checkpoint import hub
from stepscore_export.checkpoint.safetensors_reader import (
    StoredTensor,
    check_tensor,
    locate_tensors,
    read_rows,
)
from stepscore_export.checkpoint.tokenizer import (
    ChatTemplate,
    read_chat_template,
    read_tokenizer,
    tokenizer_difference,
)
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.families.qwen2 import Qwen2Config, parse_config, tensor_shapes

__all__ = ["ChatTemplate", "Checkpoint", "Qwen2Config", "check_pair"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_SAME_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


class Checkpoint:
    """One opened checkpoint; tensors go by the names of `config.tensor_shapes`. Close it or use `with`."""

    def __init__(self, folder: CheckpointFolder, source: Source) -> None:
        self.source = source
        self.folder = folder.path
        self.config = parse_config(folder.json("config.json"))
        self._tensors = locate_tensors(folder)
        self._stored_names, self._head_copy = _match_names(self._tensors, self.config)
        self._tokenizer_json = read_tokenizer(folder, self.config.vocab_size)
        self._contents = folder
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Open a local folder, or download `id@revision`; an ExportError or NotFound names the fault."""
        path = Path(source).expanduser()
        if isinstance(source, Path) or path.is_dir():
            return cls(CheckpointFolder.open(path), Source(path.resolve().name))
        name, commit, snapshot = hub.download(source)
        return cls(CheckpointFolder.open(snapshot), Source(name, commit))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; KeyError if such a model has none of that name."""
        return self._tensors[self._stored_names[name]].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type a tensor is stored in."""
        return self._tensors[self._stored_names[name]].numpy_dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start:stop] of a tensor as a float32 copy; CheckpointCorrupt if a value is not finite."""
        tensor = self._tensors[self._stored_names[name]]
        start, stop, _ = slice(start, stop).indices(tensor.shape[0])
        values = self._read(tensor, start, stop)
        copy = self._head_copy if name == EMBEDDING else None
        if copy is not None and not np.array_equal(values, self._read(copy, start, stop)):
            raise CheckpointCorrupt(
                f"{HEAD} differs from {tensor.name}, but config.json ties them",
                hint="transformers 4 ignores it, 5 uses it: set tie_word_embeddings to what was trained",
            )
        return values

    def embedded(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return looked-up rows [n, hidden_size] of the embedding as they enter the first layer."""
        return rows

    def rotation_matrix(self) -> NDArray[np.float32] | None:
        """Return what looked-up rows are multiplied with, None if with nothing."""
        return None

    def read_ahead(self, names: Iterable[str]) -> None:
        """Have the kernel read tensors in the background that `rows` will be asked for next."""
        for tensor in (self._tensors[self._stored_names[name]] for name in names):
            read_ahead(self._file(tensor).fileno(), tensor.offset, tensor.num_bytes)

    @property
    def head_name(self) -> str:
        """Name of the matrix that turns hidden rows into logits: a tied model's is its embedding."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def num_bytes(self) -> int:
        """Size of the model's tensors as stored."""
        return sum(self._tensors[name].num_bytes for name in self._stored_names.values())

    def parameters(self) -> int:
        """Count the numbers in the model's tensors."""
        return sum(math.prod(self.shape(name)) for name in self._stored_names)

    def tokenizer_json(self) -> str:
        """Text of tokenizer.json."""
        return self._tokenizer_json

    def chat_template(self) -> ChatTemplate:
        """Read the chat template; UnsupportedArchitecture if there is none (a reference needs none)."""
        return read_chat_template(self._contents)

    def close(self) -> None:
        """Close the weight files."""
        self._stack.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
        return read_rows(self._file(tensor), tensor, start, max(start, stop))

    def _file(self, tensor: StoredTensor) -> IO[bytes]:
        if tensor.path not in self._files:
            self._files[tensor.path] = self._stack.enter_context(tensor.path.open("rb", buffering=0))
        return self._files[tensor.path]


def check_pair(policy: Checkpoint, reference: Checkpoint) -> None:
    """Raise PairIncompatible unless both models have the same shapes and give text the same ids.

    Constants (rope_theta, rms_norm_eps), positions and a tied or untied head belong to each model alone.
    """
    for key in _SAME_SHAPE:
        ours, theirs = getattr(policy.config, key), getattr(reference.config, key)
        if ours != theirs:
            raise PairIncompatible(
                f"{key} is {ours} in the policy and {theirs} in the reference",
                hint="the reference is the model the policy was trained from",
            )
    difference = tokenizer_difference(policy.tokenizer_json(), reference.tokenizer_json())
    if difference is not None:
        raise PairIncompatible(
            f"the tokenizers of policy and reference differ in their {difference}",
            hint="both models must read the same token ids",
        )


def _match_names(
    tensors: Mapping[str, StoredTensor], config: Qwen2Config
) -> tuple[dict[str, str], StoredTensor | None]:
    """Map the model's tensor names to stored ones, and find a tied checkpoint's copy of its embedding."""
    shapes = tensor_shapes(config)
    # Saved from Qwen2Model: the same tensors without the prefix.
    bare = EMBEDDING not in tensors and EMBEDDING.removeprefix("model.") in tensors
    stored_names = {name: name.removeprefix("model.") if bare else name for name in shapes}
    for name, stored in stored_names.items():
        if stored not in tensors:
            raise _missing(name, bare)
        check_tensor(tensors[stored], shapes[name])
    head_copy = tensors.get(HEAD) if config.tie_word_embeddings else None
    if head_copy is not None:
        check_tensor(head_copy, shapes[EMBEDDING])
    # Rotary frequencies were saved by early versions of transformers and follow from rope_theta. Anything
    # else that is not in the model (adapters, a score head, other norms) would change what it computes.
    unknown = [
        name
        for name in tensors.keys() - {*stored_names.values(), HEAD}
        if not name.endswith(".rotary_emb.inv_freq")
    ]
    if unknown:
        raise UnsupportedArchitecture(
            f"{len(unknown)} tensors are not part of a Qwen2 causal language model, {min(unknown)} for one",
            hint="merge adapters first; classifiers, reward heads and other architectures cannot be exported",
        )
    return stored_names, head_copy


def _missing(name: str, bare: bool) -> CheckpointCorrupt:
    if name != HEAD:
        return CheckpointCorrupt(
            f"{name} is missing from the checkpoint", hint="download it again, all shards"
        )
    saved_from = " (it was saved from Qwen2Model, without the head)" if bare else ""
    return CheckpointCorrupt(
        f"{HEAD} is missing and config.json does not tie it to the embedding{saved_from}",
        hint="take a revision saved from Qwen2ForCausalLM: with a random head every score would be random",
    )


Members = dict[ModelName, Checkpoint]
"""The checkpoints of a unit, in the order of its streams."""

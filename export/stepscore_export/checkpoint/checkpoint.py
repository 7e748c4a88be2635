"""A Hugging Face checkpoint of a causal language model, checked when opened, read in row blocks.

    with Checkpoint.open("Qwen/Qwen2.5-Math-7B-Instruct@main", "reference") as checkpoint:
        checkpoint.config.hidden_size
        checkpoint.rows("lm_head.weight", 0, 4096)      # float32, finite

Opening reads headers and JSON but no weights; names, shapes, dtypes and the tokenizer are valid from then on.
Pickles and code are never loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName, Source
from stepscore.errors import (
    CheckpointCorrupt,
    ExportError,
    NotFound,
    PairIncompatible,
    UnsupportedArchitecture,
)
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
from stepscore_export.families.base import EMBEDDING, HEAD, DecoderConfig, Family, tensor_shapes
from stepscore_export.families.supported import read_config

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
    """One opened checkpoint; its tensors have the names of `tensor_shapes`. Close it or use `with`."""

    def __init__(self, folder: CheckpointFolder, source: Source, role: ModelName | None = None) -> None:
        self.source = source
        self.role = role
        self.folder = folder.path
        family, self.config = read_config(folder.json("config.json"))
        self._tensors = locate_tensors(folder)
        self._stored_names, self._head_copy = _match_names(self._tensors, family, self.config)
        self._tokenizer_json = read_tokenizer(folder, self.config.vocab_size)
        self._contents = folder
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()

    @classmethod
    def open(cls, source: str | Path, role: ModelName | None = None) -> Checkpoint:
        """Open a local folder, or download `id@revision`; an ExportError or NotFound names the fault.

        With a role, errors say whether it is the policy or the reference, now and when rows are read.
        """
        with _naming(role):
            path = Path(source).expanduser()
            if isinstance(source, Path) or path.is_dir():
                return cls(CheckpointFolder.open(path), Source(path.resolve().name), role)
            name, commit, snapshot = hub.download(source)
            return cls(CheckpointFolder.open(snapshot), Source(name, commit), role)

    def naming(self) -> AbstractContextManager[None]:
        """Have errors raised in this context say which model of the pair this is."""
        return _naming(self.role)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; KeyError if the model has none of that name."""
        return self._tensors[self._stored_names[name]].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type a tensor is stored in."""
        return self._tensors[self._stored_names[name]].numpy_dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows [start:stop] of a tensor as float32; CheckpointCorrupt if a value is not finite."""
        tensor = self._tensors[self._stored_names[name]]
        start, stop, _ = slice(start, stop).indices(tensor.shape[0])
        with self.naming():
            values = self._read(tensor, start, stop)
            copy = self._head_copy if name == EMBEDDING else None
            if copy is not None and not np.array_equal(values, self._read(copy, start, stop)):
                raise CheckpointCorrupt(
                    f"{HEAD} differs from {tensor.name}, but config.json ties them",
                    hint=f"transformers 4 ignores {HEAD}, 5 uses it: set tie_word_embeddings as in training",
                )
        return values

    def read_ahead(self, names: Iterable[str]) -> None:
        """Prefetch tensors: the kernel reads them in the background."""
        for tensor in (self._tensors[self._stored_names[name]] for name in names):
            read_ahead(self._file(tensor).fileno(), tensor.offset, tensor.num_bytes)

    @property
    def head_name(self) -> str:
        """Name of the matrix of the head; that of a tied model is its embedding."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def num_bytes(self) -> int:
        """Return the size of the model's tensors as stored."""
        return sum(self._tensors[name].num_bytes for name in self._stored_names.values())

    def parameters(self) -> int:
        """Count the numbers in the model's tensors."""
        return sum(math.prod(self.shape(name)) for name in self._stored_names)

    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json."""
        return self._tokenizer_json

    def chat_template(self) -> ChatTemplate:
        """Read the chat template; UnsupportedArchitecture if there is none (a reference needs none)."""
        with self.naming():
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
    """Raise PairIncompatible unless both models have the same shapes and tokenize all text alike.

    Constants (rope_theta, rms_norm_eps), positions and tied embeddings may differ.
    """
    for key in _SAME_SHAPE:
        of_policy, of_reference = getattr(policy.config, key), getattr(reference.config, key)
        if of_policy != of_reference:
            raise PairIncompatible(
                f"{key} is {of_policy} in the policy and {of_reference} in the reference",
                hint="use the model that the policy was trained from as the reference",
            )
    difference = tokenizer_difference(policy.tokenizer_json(), reference.tokenizer_json())
    if difference is not None:
        raise PairIncompatible(
            f"the tokenizers of policy and reference differ in their {difference}",
            hint="use two models with one tokenizer: both must read the same token ids",
        )


@contextmanager
def _naming(role: ModelName | None) -> Iterator[None]:
    try:
        yield
    except (ExportError, NotFound) as error:
        if role is not None and not error.message.startswith(f"{role}: "):
            error.message = f"{role}: {error.message}"
            error.args = (error.message,)
        raise


def _match_names(
    tensors: Mapping[str, StoredTensor], family: Family, config: DecoderConfig
) -> tuple[dict[str, str], StoredTensor | None]:
    """Map the model's tensor names to stored ones, and find a tied checkpoint's copy of its embedding."""
    shapes = tensor_shapes(config)
    # Saved from the model without its head: the same tensors without the prefix.
    bare = EMBEDDING not in tensors and EMBEDDING.removeprefix("model.") in tensors
    stored_names = {name: name.removeprefix("model.") if bare else name for name in shapes}
    for name, stored in stored_names.items():
        if stored not in tensors:
            raise _missing(name, family, bare)
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
            f"{len(unknown)} tensors are not part of {family.causal_lm}, such as {min(unknown)}",
            hint="merge adapters first; classifiers, reward heads and other architectures are not supported",
        )
    return stored_names, head_copy


def _missing(name: str, family: Family, bare: bool) -> CheckpointCorrupt:
    if name != HEAD:
        return CheckpointCorrupt(
            f"{name} is missing from the checkpoint", hint="download it again, all shards"
        )
    saved_from = f" (it was saved from {family.base_model}, without the head)" if bare else ""
    return CheckpointCorrupt(
        f"{HEAD} is missing and config.json does not tie it to the embedding{saved_from}",
        hint=f"use a revision saved from {family.causal_lm}; with a random head every score would be random",
    )


Members = dict[ModelName, Checkpoint]
"""The checkpoints of a unit, in the order of its streams."""

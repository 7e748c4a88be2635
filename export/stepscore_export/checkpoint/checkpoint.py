"""A Hugging Face checkpoint of a causal language model, checked when opened, read in row blocks.

    with Checkpoint.open("Qwen/Qwen2.5-Math-7B-Instruct@main", "reference") as checkpoint:
        checkpoint.config.hidden_size
        checkpoint.rows("lm_head.weight", 0, 4096)      # float32, finite

Opening reads headers and JSON but no weights; names, shapes, dtypes and the tokenizer are valid from then on.
Pickles and code are never loaded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName, Source
from stepscore.errors import CheckpointCorrupt, ExportError, NotFound, UnsupportedArchitecture
from stepscore.fileio import read_ahead
from stepscore_export.checkpoint import hub, lora
from stepscore_export.checkpoint.folder_contents import CONFIG, no_config
from stepscore_export.checkpoint.safetensors_reader import (
    INDEX,
    SINGLE_FILE,
    StoredTensor,
    locate_tensors,
    read_rows,
)
from stepscore_export.checkpoint.tensor_names import match_names
from stepscore_export.checkpoint.tokenizer import ChatTemplate, read_chat_template, read_tokenizer
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.families.base import EMBEDDING, FINAL_NORM, HEAD, tensor_shapes
from stepscore_export.families.supported import read_config

LOGGER = logging.getLogger("stepscore")


class Checkpoint:
    """One opened checkpoint; its tensors have the names of `tensor_shapes`. Close it or use `with`."""

    def __init__(self, folder: CheckpointFolder, source: Source, label: str | None = None) -> None:
        self.source = source
        self.label = label
        """How errors name this model: which of the pair, and where it was asked for."""
        self.folder = folder.path
        if not folder.has(CONFIG):
            raise no_config(folder)
        self.family, self.config = read_config(folder.json(CONFIG))
        self._tensors = locate_tensors(folder)
        self._names = match_names(self._tensors, self.family, self.config)
        self._lora = lora.read_lora(folder, tensor_shapes(self.config))
        self._tokenizer = read_tokenizer(folder, self.config.vocab_size)
        self._contents = folder
        self._files: dict[Path, IO[bytes]] = {}
        self._stack = ExitStack()
        self._tell_choices()

    @classmethod
    def open(cls, source: str | Path, role: ModelName | None = None) -> Checkpoint:
        """Open a local folder, or download `id@revision`; an ExportError or NotFound names the fault.

        With a role, errors name it, its option and `source`, now and when rows are read.
        """
        label = None if role is None else f"{role} (--{role} {source})"
        with _naming(label):
            path = Path(source).expanduser()
            if isinstance(source, Path) or path.is_dir():
                return cls(CheckpointFolder.open(path), Source(path.resolve().name), label)
            name, commit, snapshot = hub.download(source)
            return cls(CheckpointFolder.open(snapshot), Source(name, commit), label)

    @property
    def name(self) -> str:
        """Return how messages name this model."""
        return self.label or self.source.name

    def naming(self) -> AbstractContextManager[None]:
        """Have errors raised in this context say which model of the pair this is."""
        return _naming(self.label)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; KeyError if the model has none of that name."""
        stored = self._tensors[self._names.stored[name]].shape
        return (self.config.vocab_size, *stored[1:]) if name in {EMBEDDING, HEAD} else stored

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type that holds a tensor's numbers: the stored one, or float32 where rows are merged."""
        if self._lora is not None and name in self._lora.factors:
            return np.dtype(np.float32)
        return self._tensors[self._names.stored[name]].numpy_dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows [start:stop] of a tensor as float32; CheckpointCorrupt if a value is not finite."""
        tensor = self._tensors[self._names.stored[name]]
        start, stop, _ = slice(start, stop).indices(self.shape(name)[0])
        with self.naming():
            values = self._merged(name, self._read(tensor, start, stop), start)
            copy = self._names.head_copy if name == EMBEDDING else None
            if copy is not None and not np.array_equal(values, self._read(copy, start, stop)):
                raise CheckpointCorrupt(
                    f"{HEAD} differs from {tensor.name}, but config.json ties them",
                    hint=f"transformers 4 ignores {HEAD}, 5 uses it: set tie_word_embeddings as in training",
                )
        return values

    def embedded(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return looked-up rows [n, hidden_size] of the embedding as they enter the first layer."""
        return rows

    def values_as_stored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return attention values as they are."""
        return values

    def head_input(self, normed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return normed rows [n, H] with the scale of the final norm."""
        return normed * self.rows(FINAL_NORM)

    def rotation_matrix(self) -> NDArray[np.float32] | None:
        """Return what looked-up rows are multiplied with, None if with nothing."""
        return None

    def read_ahead(self, names: Iterable[str]) -> None:
        """Prefetch tensors: the kernel reads them in the background."""
        for tensor in (self._tensors[self._names.stored[name]] for name in names):
            read_ahead(self._file(tensor).fileno(), tensor.offset, tensor.num_bytes)

    @property
    def head_name(self) -> str:
        """Name of the matrix of the head; that of a tied model is its embedding."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def num_bytes(self) -> int:
        """Return the size of the model's tensors as stored."""
        adapter = 0 if self._lora is None else self._lora.num_bytes()
        return adapter + sum(self._tensors[name].num_bytes for name in self._names.stored.values())

    def parameters(self) -> int:
        """Count the numbers in the model's tensors."""
        return sum(math.prod(self.shape(name)) for name in self._names.stored)

    def keep_vocabulary(self, rows: int) -> None:
        """Cut embedding and head to their first rows; the others are never read."""
        self.config = replace(self.config, vocab_size=rows)

    def require_plain(self, user: str) -> None:
        """Raise UnsupportedArchitecture where transformers, which `user` needs, would read another model."""
        found = None
        if self._lora is not None:
            found = f"holds a LoRA adapter beside its weights ({lora.WEIGHTS})"
        elif self._names.wrapper is not None:
            found = f"has tensor names of a wrapper ({self._names.wrapper})"
        elif self.shape(EMBEDDING) != self._tensors[self._names.stored[EMBEDDING]].shape:
            found = f"has more rows of its vocabulary than the other model ({self.config.vocab_size})"
        if found is not None:
            with self.naming():
                raise UnsupportedArchitecture(
                    f"the checkpoint {found}; {user} works with transformers, which reads it differently",
                    hint="save it as a plain model: merged, out of its wrapper, with the other's vocabulary",
                )

    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json."""
        return self._tokenizer.text

    @property
    def largest_token(self) -> int:
        """Return the largest id of the tokenizer, added tokens included."""
        return self._tokenizer.largest_id

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

    def _merged(self, name: str, values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Return rows of a matrix with those of its adapter, if it has one."""
        if self._lora is None or name not in self._lora.factors:
            return values
        a, b = self._lora.factors[name]
        rows_of_b = self._read(b, start, start + len(values))
        merged = lora.merge(values, self._read(a, 0, a.shape[0]), rows_of_b, self._lora.scale)
        if not np.isfinite(merged).all():
            raise CheckpointCorrupt(f"{name} is not finite once {lora.WEIGHTS} is merged into it")
        return merged

    def _tell_choices(self) -> None:
        """Warn of what is read, where the folder holds more than one reading."""
        name = self.name
        if self._contents.has(SINGLE_FILE) and self._contents.has(INDEX):
            LOGGER.warning("%s: %s is read, as in transformers, and %s is not", name, SINGLE_FILE, INDEX)
        if self._lora is not None:
            LOGGER.warning(
                "%s: %s is merged into the weights beside it (rank %d, alpha %g, %d matrices); remove the "
                "adapter if they already contain it",
                *(name, lora.WEIGHTS, self._lora.rank, self._lora.alpha, len(self._lora.factors)),
            )

    def _read(self, tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
        return read_rows(self._file(tensor), tensor, start, max(start, stop))

    def _file(self, tensor: StoredTensor) -> IO[bytes]:
        if tensor.path not in self._files:
            self._files[tensor.path] = self._stack.enter_context(tensor.path.open("rb", buffering=0))
        return self._files[tensor.path]


@contextmanager
def _naming(label: str | None) -> Iterator[None]:
    try:
        yield
    except (ExportError, NotFound) as error:
        if label is not None and not error.message.startswith(f"{label}: "):
            error.message = f"{label}: {error.message}"
            error.args = (error.message,)
        raise

"""llama.cpp through llama-cpp-python: Q8_0 weights, logits of all tokens, log-softmax in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.peers.contender import Checkpoints, SequenceLogprobs, Tokens
from benchmarks.peers.gguf_file import write_q8_0
from numpy.typing import NDArray

from stepscore_export.checkpoint.checkpoint import Checkpoint

if TYPE_CHECKING:
    from llama_cpp import Llama

BATCH_TOKENS = 512
CHUNK_ROWS = 64
"""Tokens per log-softmax: 39 MB over a vocabulary of 151,936, so that they stay near the cache."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Q8_0 on the CPU, one sequence at a time; `max_tokens` is the context length."""

    threads: int
    max_tokens: int

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return "llama.cpp Q8_0, one at a time"

    def prepare(self, models: Checkpoints) -> None:
        """Write both GGUF files if they do not exist."""
        for checkpoint in (models.policy, models.reference):
            path = _gguf(models, checkpoint)
            if not path.is_file():
                with Checkpoint.open(str(checkpoint)) as opened:
                    write_q8_0(checkpoint, opened.config, path)

    def load(self, models: Checkpoints) -> LoadedLlama:
        """Load both files, each with a separate context."""
        policy, reference = (
            self._open(_gguf(models, checkpoint)) for checkpoint in (models.policy, models.reference)
        )
        return LoadedLlama(policy, reference)

    def _open(self, path: Path) -> Llama:
        from llama_cpp import Llama  # noqa: PLC0415 - an extra

        return Llama(
            str(path),
            n_ctx=self.max_tokens,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            logits_all=True,
            verbose=False,
        )


@dataclass(frozen=True, slots=True)
class LoadedLlama:
    """Both models, a context each."""

    policy: Llama
    reference: Llama

    def logprobs(self, sequences: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score the sequences one by one, each with both models."""
        return [(_logprobs(self.policy, each), _logprobs(self.reference, each)) for each in sequences]


def _gguf(models: Checkpoints, checkpoint: Path) -> Path:
    return models.scratch / f"{checkpoint.name}-q8_0.gguf"


def _logprobs(model: Llama, tokens: Tokens) -> NDArray[np.float32]:
    model.reset()
    model.eval(tokens.tolist())
    return gathered_log_softmax(model.scores[: len(tokens) - 1], tokens[1:])


def gathered_log_softmax(logits: NDArray[np.float32], targets: Tokens) -> NDArray[np.float32]:
    """Return `logits[j, targets[j]] - log(sum(exp(logits[j])))`, float32 [t]; logits are [t, vocabulary].

    >>> [f"{value:.4f}" for value in gathered_log_softmax(np.zeros((2, 4), np.float32), np.array([1, 3]))]
    ['-1.3863', '-1.3863']
    """
    result = np.empty(len(targets), np.float32)
    for first in range(0, len(targets), CHUNK_ROWS):
        part = slice(first, first + CHUNK_ROWS)
        rows = logits[part] - logits[part].max(axis=1, keepdims=True)
        chosen = np.take_along_axis(rows, targets[part, None], axis=1)[:, 0]
        result[part] = chosen - np.log(np.exp(rows, out=rows).sum(axis=1))
    return result

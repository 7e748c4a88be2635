"""What can be set about memory: residency, batch and window sizes."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Residency, Target

HEAD_ROWS = 1024
"""Rows in one chunk of the head. Its graph holds logits for one tile of the vocabulary: 33 MB a copy."""


INTEGER_HEAD_ROWS = 256
"""The same for integer products, which hold more copies and need no more rows to be at full speed."""


BATCH_TOKENS = 2048


CUDA_HEAD_ROWS = 4096


CUDA_BATCH_TOKENS = 8192
"""A GPU wants more rows a product, and has the memory."""


LEAST_BATCH_TOKENS = 128


WINDOW_TOKENS = 16_384
"""Records in which shared prefixes are found; where weights come and go, they do so once a window."""


WINDOW_BATCHES = 8
"""At most so many batches wait in memory for the next weights."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a memory limit decides."""

    residency: Residency
    max_batch_tokens: int
    window_tokens: int
    head_rows: int
    materializes_scores: bool = True
    """Whether attention has all scores of a batch of short sequences in memory: the CPU's does."""


def usual_head_rows(manifest: Manifest) -> int:
    """Return the rows in a chunk of the head, where no memory limit says less."""
    if manifest.target is Target.CUDA:
        return CUDA_HEAD_ROWS
    return INTEGER_HEAD_ROWS if manifest.has_int8_activations else HEAD_ROWS


def usual_batch_tokens(manifest: Manifest) -> int:
    """Return the tokens of a batch, where nothing says less."""
    return CUDA_BATCH_TOKENS if manifest.target is Target.CUDA else BATCH_TOKENS

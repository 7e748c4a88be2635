"""Tiny models of every family and trait: what the tests of families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from testing.checkpoints import TINY, tied

from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import DecoderConfig
from stepscore_export.families.rope import Llama3Rope, YarnRope
from stepscore_export.families.transformers_settings import transformers_settings

# Within 32 positions the lowest frequency turns once, so that each kind of scaling reaches some of them.
LLAMA3_ROPE = Llama3Rope(
    theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN_ROPE = YarnRope(
    theta=1000.0,
    factor=4.0,
    original_max_position_embeddings=64,
    attention_factor=1.1386294361119891,
    beta_fast=4.0,
    beta_slow=1.0,
)
LLAMA3 = replace(TINY, attention_bias=False, rope=LLAMA3_ROPE, rms_norm_eps=1e-5)
LLAMA3_TIED = tied(LLAMA3)
QWEN3 = replace(TINY, attention_bias=False, qk_norm=True, head_dim=32, tie_word_embeddings=True)
QWEN2_YARN = replace(TINY, rope=YARN_ROPE, max_position_embeddings=256)

FAMILY_SHAPES: Mapping[str, DecoderConfig] = MappingProxyType(
    {"llama3": LLAMA3, "llama3-tied": LLAMA3_TIED, "qwen3": QWEN3, "qwen2-yarn": QWEN2_YARN}
)


def settings_of(folder: Path) -> dict[str, Any]:
    """What transformers is told of a checkpoint."""
    with Checkpoint.open(folder) as checkpoint:
        return transformers_settings(checkpoint.family, checkpoint.config)

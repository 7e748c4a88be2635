"""Frequencies of rotary embeddings against transformers, and how a config.json states them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from testing.checkpoints import TINY, config_json
from testing.families import LLAMA3_ROPE, YARN_ROPE

from stepscore_export.families.rope import DefaultRope, Llama3Rope, Rope, YarnRope, rotary_frequencies

LLAMA_3_1 = Llama3Rope(500_000.0, 8.0, 1.0, 4.0, 8192)
LLAMA_3_2 = Llama3Rope(500_000.0, 32.0, 1.0, 4.0, 8192)
QWEN2_5_LONG = YarnRope(1_000_000.0, 4.0, 32_768, 0.1 * math.log(4.0) + 1)
ROPES = [
    (DefaultRope(10_000.0), 64),
    (LLAMA_3_1, 128),
    (LLAMA_3_2, 64),
    (LLAMA3_ROPE, 16),
    (QWEN2_5_LONG, 128),
    (YARN_ROPE, 16),
    (YarnRope(10_000.0, 40.0, 4096, 1.0, 32.0, 1.0, truncate=False), 96),
    (YarnRope(100.0, 0.5, 8, 0.7), 4),  # both ends of the ramp beyond its range
]


@pytest.mark.torch
@pytest.mark.parametrize(("rope", "head_dim"), ROPES, ids=repr)
def test_frequencies_are_those_of_transformers(rope: Rope, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = {"hidden_size": head_dim * 2, "num_attention_heads": 2, "max_position_embeddings": 1 << 17}
    config = LlamaConfig(**shape, **_as_config(rope))
    theirs = LlamaRotaryEmbedding(config)
    frequencies, attention_factor = rotary_frequencies(rope, head_dim)
    assert frequencies.dtype == np.float64
    np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=2e-6)
    assert attention_factor == pytest.approx(theirs.attention_scaling, abs=1e-12)


def _as_config(rope: Rope) -> dict[str, Any]:
    config = config_json(replace(TINY, rope=rope))
    return {key: config[key] for key in ("rope_theta", "rope_scaling") if key in config}


def test_llama3_keeps_high_frequencies_and_divides_low_ones() -> None:
    frequencies, _ = rotary_frequencies(LLAMA_3_1, 128)
    plain, _ = rotary_frequencies(DefaultRope(500_000.0), 128)
    ratio = frequencies / plain
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(1 / 8)
    assert (np.diff(ratio) <= 1e-12).all()

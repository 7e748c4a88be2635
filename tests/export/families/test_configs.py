"""How the config.json of each family is read: layouts, defaults, and what is rejected by its key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from testing.checkpoints import TINY, config_json
from testing.families import FAMILY_SHAPES, LLAMA3, QWEN2_YARN, QWEN3

from stepscore.errors import CheckpointCorrupt, StepscoreError, UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig
from stepscore_export.families.rope import DefaultRope, Llama3Rope, YarnRope
from stepscore_export.families.supported import read_config

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(shape: DecoderConfig, **changes: Any) -> DecoderConfig:
    config = config_json(shape) | changes
    return read_config({key: value for key, value in config.items() if value is not ...})[1]


@pytest.mark.parametrize("layout", [4, 5])
@pytest.mark.parametrize("shape", FAMILY_SHAPES.values(), ids=FAMILY_SHAPES)
def test_each_family_is_read_in_both_layouts(shape: DecoderConfig, layout: Literal[4, 5]) -> None:
    assert read_config(config_json(shape, layout=layout))[1] == shape


@pytest.mark.parametrize(
    ("shape", "head_dim", "positions"), [(TINY, 16, 32768), (QWEN3, 128, 32768), (LLAMA3, 16, 2048)]
)
def test_keys_left_out_have_the_defaults_of_transformers(
    shape: DecoderConfig, head_dim: int, positions: int
) -> None:
    left_out = ("head_dim", "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_scaling")
    found = read(shape, **dict.fromkeys(left_out, ...))
    expected = replace(shape, head_dim=head_dim, max_position_embeddings=positions, rms_norm_eps=1e-6)
    assert found == replace(expected, rope=DefaultRope(10_000.0))


def test_yarn_of_qwen2_5_reads_its_factor_times_as_many_tokens() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    found = read(TINY, max_position_embeddings=32768, rope_theta=1e6, rope_scaling=scaling)
    assert found.max_position_embeddings == 131_072
    assert found.rope == YarnRope(1e6, 4.0, 32768, attention_factor=1.138629436111989)


def test_yarn_without_an_original_length_scales_the_models() -> None:
    found = read(TINY, rope_scaling={"factor": 2.0, "rope_type": "yarn", "mscale": 1.0})
    assert found.max_position_embeddings == 512
    assert isinstance(found.rope, YarnRope)
    assert found.rope.original_max_position_embeddings == 512


def test_the_attention_factor_of_yarn_is_a_ratio_where_both_mscales_are_given() -> None:
    scaling = {"factor": 40.0, "rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.5}
    found = read(TINY, rope_scaling=scaling).rope
    assert isinstance(found, YarnRope)
    assert found.attention_factor == pytest.approx((0.1 * 3.688879 + 1) / (0.05 * 3.688879 + 1))


def test_theta_inside_a_scaling_is_read() -> None:
    found = read(LLAMA3, rope_theta=..., rope_scaling=LLAMA3_SCALING | {"rope_theta": 500_000.0})
    assert found.rope == Llama3Rope(500_000.0, 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("shape", "changes", "error", "message"),
    [
        (LLAMA3, {"attention_bias": True}, UnsupportedArchitecture, "attention_bias true"),
        (LLAMA3, {"mlp_bias": True}, UnsupportedArchitecture, "mlp_bias true"),
        (LLAMA3, {"pretraining_tp": 2}, UnsupportedArchitecture, "pretraining_tp is 2"),
        (QWEN3, {"attention_bias": True}, UnsupportedArchitecture, "attention_bias true"),
        (
            QWEN3,
            {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 9},
            UnsupportedArchitecture,
            "window of 9",
        ),
        (
            QWEN2_YARN,
            {
                "use_sliding_window": True,
                "max_window_layers": 0,
                "sliding_window": 255,
                "max_position_embeddings": 64,
            },
            UnsupportedArchitecture,
            "all 256",
        ),
        (LLAMA3, {"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": 1.0}}, CheckpointCorrupt, "larger"),
        (
            LLAMA3,
            {"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": None}},
            CheckpointCorrupt,
            "without low_freq_factor",
        ),
        (
            LLAMA3,
            {"rope_scaling": LLAMA3_SCALING | {"attention_factor": 1.0}},
            UnsupportedArchitecture,
            "attention_factor is not supported",
        ),
        (LLAMA3, {"rope_scaling": LLAMA3_SCALING | {"type": "yarn"}}, CheckpointCorrupt, "type 'yarn'"),
        (LLAMA3, {"rope_parameters": LLAMA3_SCALING}, CheckpointCorrupt, "but rope_parameters is"),
        (LLAMA3, {"original_max_position_embeddings": 16}, CheckpointCorrupt, "is 16, but .* 32"),
        (LLAMA3, {"rope_scaling": LLAMA3_SCALING | {"rope_theta": 1e6}}, CheckpointCorrupt, "1000000.0"),
        (TINY, {"rope_scaling": {"rope_type": "yarn"}}, CheckpointCorrupt, "without factor"),
        (
            TINY,
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0},
            CheckpointCorrupt,
            "above 1",
        ),
        (
            TINY,
            {"rope_scaling": {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 512}},
            CheckpointCorrupt,
            "reaches 5",
        ),
        (TINY, {"rope_scaling": {"rope_type": ["yarn"]}}, UnsupportedArchitecture, "supported kinds"),
    ],
)
def test_a_variant_is_rejected_by_its_key(
    shape: DecoderConfig, changes: dict[str, Any], error: type[StepscoreError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(shape, **changes)

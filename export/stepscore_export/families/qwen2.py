"""Qwen2 and Qwen2.5: biases on query, key and value."""

from __future__ import annotations

from stepscore.errors import UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import flag
from stepscore_export.families.sliding_windows import check_windows


def _check(config: Json, parsed: DecoderConfig) -> None:
    # transformers' Qwen2 reads neither key: its q/k/v biases and plain rotary angles are fixed.
    if not flag(config, "attention_bias", default=True) or flag(config, "use_mrope"):
        raise UnsupportedArchitecture(
            "config.json: attention_bias false and use_mrope true are not supported for qwen2"
        )
    check_windows(config, parsed)


QWEN2 = Family(
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    base_model="Qwen2Model",
    attention_bias=True,
    qk_norm=False,
    default_head_dim=None,
    default_positions=32768,
    check=_check,
    published=("Qwen2", "Qwen2.5", "Qwen2.5-Math", "Qwen2.5-Coder", "EurusPRM"),
    measured=("Qwen2.5-Coder-0.5B-Instruct",),
)

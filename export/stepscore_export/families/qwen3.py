"""Qwen3, dense: query and key normed per head, no biases, a head size of its own."""

from __future__ import annotations

from stepscore.errors import UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import flag
from stepscore_export.families.sliding_windows import check_windows


def _check(config: Json, parsed: DecoderConfig) -> None:
    if flag(config, "attention_bias"):
        raise UnsupportedArchitecture("config.json: attention_bias true is not supported for qwen3")
    check_windows(config, parsed)


QWEN3 = Family(
    model_type="qwen3",
    causal_lm="Qwen3ForCausalLM",
    base_model="Qwen3Model",
    attention_bias=False,
    qk_norm=True,
    default_head_dim=128,
    default_positions=32768,
    check=_check,
    published=("Qwen3 (dense)",),
    measured=(),
)

"""Llama 3, and what is published as Llama, such as SmolLM2: no biases, no norms of query and key."""

from __future__ import annotations

from stepscore.errors import UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import flag, positive_int


def _check(config: Json, parsed: DecoderConfig) -> None:
    del parsed
    for key in ("attention_bias", "mlp_bias"):
        if flag(config, key):
            raise UnsupportedArchitecture(f"config.json: {key} true is not supported for llama")
    if (slices := positive_int(config, "pretraining_tp", 1)) != 1:
        raise UnsupportedArchitecture(
            f"config.json: pretraining_tp is {slices}, expected 1",
            hint="set it to 1: it only cuts the matmuls into slices, whose sums differ in the last bits",
        )


LLAMA = Family(
    model_type="llama",
    causal_lm="LlamaForCausalLM",
    base_model="LlamaModel",
    attention_bias=False,
    qk_norm=False,
    default_head_dim=None,
    default_positions=2048,
    check=_check,
    published=("Llama 3", "Llama 3.1", "Llama 3.2", "SmolLM2"),
    measured=("SmolLM2-135M-Instruct",),
)

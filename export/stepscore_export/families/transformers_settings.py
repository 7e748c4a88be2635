"""The configuration of a checkpoint for transformers, made of what was read and checked of its config.json.

transformers 4 and 5 write the rotary embedding to different places, and each ignores the other's. Built from
the parsed config, a model is the same in both, and no key that nobody has checked reaches transformers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stepscore.engine.pytorch.checked_rope import rope_keys
from stepscore_export.families.base import DecoderConfig, Family, architecture

_OF_THE_FAMILY = ("attention_bias", "qk_norm")
"""Traits that transformers' class of the model type has by itself."""


def transformers_settings(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """Return the settings of a model by transformers' keys, `model_type` among them."""
    shape = msgspec.structs.asdict(architecture(config))
    rope = msgspec.to_builtins(config.rope)
    return {
        "model_type": family.model_type,
        **{key: value for key, value in shape.items() if key not in _OF_THE_FAMILY},
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        # Else the class's own, which are not the model's.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **rope_keys(rope.pop("theta"), {"rope_type": rope.pop("type"), **rope}),
    }

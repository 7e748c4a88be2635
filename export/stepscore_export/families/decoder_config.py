"""Reads the shapes, constants and traits of a model from a `config.json` that transformers 4 or 5 wrote."""

from __future__ import annotations

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import (
    MOST_LAYERS,
    MOST_POSITIONS,
    flag,
    positive_float,
    positive_int,
)
from stepscore_export.families.rope_config import longest_text, parse_rope


def decoder_config(config: Json, family: Family) -> DecoderConfig:
    """Return what `config.json` says of a model of this family.

    Raises UnsupportedArchitecture for a variant with other numbers (another activation, another kind of
    rotary embedding, what the family itself rejects), CheckpointCorrupt for a value that is missing or
    impossible.
    """
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitecture(f"config.json: hidden_act is {config['hidden_act']!r}, expected 'silu'")
    hidden_size = positive_int(config, "hidden_size")
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointCorrupt(
            f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads"
        )
    head_dim = positive_int(config, "head_dim", family.default_head_dim or hidden_size // heads)
    if head_dim % 2:
        raise CheckpointCorrupt(f"config.json: head_dim is {head_dim}; rotary embeddings need an even one")
    positions = positive_int(config, "max_position_embeddings", family.default_positions, most=MOST_POSITIONS)
    rope = parse_rope(config, positions)
    parsed = DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=positive_int(config, "intermediate_size"),
        num_hidden_layers=positive_int(config, "num_hidden_layers", most=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=positive_int(config, "vocab_size"),
        max_position_embeddings=longest_text(config, rope, positions),
        rms_norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        rope=rope,
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        attention_bias=family.attention_bias,
        qk_norm=family.qk_norm,
    )
    family.check(config, parsed)
    return parsed

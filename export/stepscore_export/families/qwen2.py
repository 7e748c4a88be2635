"""Qwen2: grouped-query attention with biases on query, key and value, plain rotary embeddings, SwiGLU."""

from __future__ import annotations

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import (
    default_rope_theta,
    flag,
    positive_float,
    positive_int,
    strings,
)

# The names of all layers are spelled out before the first is looked for.
_MOST_LAYERS = 1000
# An export stores a rotary table of all positions; the longest contexts today are 10 million tokens.
_MOST_POSITIONS = 1 << 24


def parse_config(config: Json) -> DecoderConfig:
    """Read a `config.json` that transformers 4 or 5 wrote.

    Raises UnsupportedArchitecture for a variant of Qwen2 with other numbers (sliding windows, scaled rotary
    embeddings, no biases), CheckpointCorrupt for a value that is missing or impossible.
    """
    _check_is_plain(config)
    hidden_size = positive_int(config, "hidden_size")
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointCorrupt(
            f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads"
        )
    head_dim = positive_int(config, "head_dim", hidden_size // heads)
    if head_dim % 2:
        raise CheckpointCorrupt(f"config.json: head_dim is {head_dim}; rotary embeddings need an even one")
    return DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=positive_int(config, "intermediate_size"),
        num_hidden_layers=positive_int(config, "num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=positive_int(config, "vocab_size"),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 32768, most=_MOST_POSITIONS),
        rms_norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        rope_theta=default_rope_theta(config),
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        attention_bias=True,
    )


def _check_is_plain(config: Json) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitecture(f"config.json: hidden_act is {config['hidden_act']!r}, expected 'silu'")
    # transformers' Qwen2 reads neither key: its q/k/v biases and plain rotary angles are fixed.
    if not config.get("attention_bias", True) or config.get("use_mrope"):
        raise UnsupportedArchitecture(
            "config.json: attention_bias false and use_mrope true are not supported for qwen2"
        )
    if config.get("use_sliding_window"):
        raise UnsupportedArchitecture(
            "config.json: use_sliding_window is true; sliding window attention is not supported",
            hint="set it to false if every sequence fits the window",
        )
    other_layers = set(strings(config, "layer_types")) - {"full_attention"}
    if other_layers:
        raise UnsupportedArchitecture(
            f"config.json: layer_types has {sorted(other_layers)}, only 'full_attention' is supported"
        )


QWEN2 = Family(
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    base_model="Qwen2Model",
    tokenizer="Qwen2Tokenizer",
    special_tokens=dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    parse_config=parse_config,
)

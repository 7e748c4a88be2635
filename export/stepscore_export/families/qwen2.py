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

FULL, SLIDING = "full_attention", "sliding_attention"

# The names of all layers are spelled out before the first is looked for.
_MOST_LAYERS = 1000
_DEFAULT_WINDOW = 4096
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
    biased = config.get("attention_bias") is None or flag(config, "attention_bias")
    if not biased or flag(config, "use_mrope"):
        raise UnsupportedArchitecture(
            "config.json: attention_bias false and use_mrope true are not supported for qwen2"
        )
    other_layers = set(strings(config, "layer_types")) - {FULL, SLIDING}
    if other_layers:
        raise UnsupportedArchitecture(
            f"config.json: layer_types has {sorted(other_layers)}, only {FULL!r} is supported"
        )
    _check_sliding_window(config)


def _check_sliding_window(config: Json) -> None:
    """Refuse layers that see less than every sequence the model takes."""
    in_use, window = flag(config, "use_sliding_window"), None
    if in_use and config.get("sliding_window", _DEFAULT_WINDOW) is not None:
        window = positive_int(config, "sliding_window", _DEFAULT_WINDOW)
    layers = positive_int(config, "num_hidden_layers", most=_MOST_LAYERS)
    types = strings(config, "layer_types")
    if not types and window is not None:  # as transformers: full attention in the first layers
        full = config.get("max_window_layers", 28)
        if type(full) is not int:
            raise CheckpointCorrupt(f"config.json: max_window_layers is {full!r}, expected an integer")
        types = [SLIDING] if full < layers else []
    longest = positive_int(config, "max_position_embeddings", 32768)
    if SLIDING in types[:layers] and (window is None or window < longest):
        raise UnsupportedArchitecture(
            f"config.json: some layers have {SLIDING!r} with a window of {window} tokens, expected all "
            f"{longest} of the model (use_sliding_window is {str(in_use).lower()})",
            hint="set use_sliding_window to false and remove layer_types if every text fits the window",
        )


QWEN2 = Family(
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    base_model="Qwen2Model",
    tokenizer="Qwen2Tokenizer",
    special_tokens=dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    parse_config=parse_config,
)

"""A model family: the class names it goes by, how its `config.json` is read, and what its tensors are called.

Families share one decoder; what they differ in is a trait, a field of DecoderConfig such as `attention_bias`.
decoder_config.py reads it from config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stepscore.artifact.manifest import Architecture
from stepscore_export.families.rope import Rope

Json = Mapping[str, Any]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shapes, constants and traits of one causal language model, under Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    attention_bias: bool = True
    """Whether q_proj, k_proj and v_proj have a bias."""
    qk_norm: bool = False
    """Whether each head of queries and keys is RMS-normed before its rotary embedding. A layer has one scale
    [head_dim] for its queries and one for its keys."""


def architecture(config: DecoderConfig) -> Architecture:
    """Return the shape as a manifest has it."""
    return Architecture(**{key: getattr(config, key) for key in Architecture.__struct_fields__})


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints, as transformers names it, and its traits."""

    model_type: str
    causal_lm: str
    """Class of the model with its head: what a pair is made of."""
    base_model: str
    """Class of the model without its head."""
    attention_bias: bool
    qk_norm: bool
    default_head_dim: int | None
    """Head size where config.json has none; None: hidden_size / num_attention_heads."""
    default_positions: int
    """Longest text where config.json has none."""
    check: Callable[[Json, DecoderConfig], None]
    """Raises UnsupportedArchitecture or CheckpointCorrupt where config.json asks for what the traits lack."""
    published: tuple[str, ...]
    """Models of this family, as they are published."""
    measured: tuple[str, ...]
    """Those of which a pair was made and measured; other models are held by random weights alone."""


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of such a model by its name, in the order of the computation.

    Linear weights are [out_features, in_features]. A tied model has no `lm_head.weight`.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for projection, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        layer[f"self_attn.{projection}.weight"] = (rows, hidden)
        if config.attention_bias:
            layer[f"self_attn.{projection}.bias"] = (rows,)
    if config.qk_norm:
        layer |= {f"self_attn.{kind}_norm.weight": (config.head_dim,) for kind in "qk"}
    layer |= {
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes

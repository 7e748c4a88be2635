"""What a Qwen2 `config.json` says: the numbers the graph needs, or the reason for refusing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe, UnsupportedArchitecture

Json = Mapping[str, Any]

# The names of all layers are spelled out before the first is looked for.
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Qwen2Config:
    """Shapes and constants of one Qwen2 causal language model, under Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    attention_bias: bool = True


def parse_config(config: Json) -> Qwen2Config:
    """Read a transformers 4 or 5 `config.json`; keys that may be left out take transformers' defaults.

    Raises CheckpointUnsafe (`auto_map`), UnsupportedArchitecture (anything but plain Qwen2) and
    CheckpointCorrupt (a number that is missing or cannot be).
    """
    refuse_remote_code(config, "config.json")
    _refuse_other_architectures(config)
    hidden_size = _positive_int(config, "hidden_size")
    heads = _positive_int(config, "num_attention_heads")
    kv_heads = _positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointCorrupt(
            f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads"
        )
    head_dim = _positive_int(config, "head_dim", hidden_size // heads)
    if head_dim % 2:
        raise CheckpointCorrupt(f"config.json: head_dim is {head_dim}; rotary embeddings need an even one")
    return Qwen2Config(
        hidden_size=hidden_size,
        intermediate_size=_positive_int(config, "intermediate_size"),
        num_hidden_layers=_positive_int(config, "num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_positive_int(config, "vocab_size"),
        max_position_embeddings=_positive_int(config, "max_position_embeddings", 32768),
        rms_norm_eps=_positive_float(config, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        tie_word_embeddings=_flag(config, "tie_word_embeddings"),
    )


def tensor_shapes(config: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor such a model has, by transformers' name, in the order of the computation.

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
    layer |= {
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def refuse_remote_code(config: Json, name: str) -> None:
    """`auto_map` asks for Python code from the checkpoint to be run; nobody here runs any."""
    if config.get("auto_map"):
        raise CheckpointUnsafe(
            f"{name} has `auto_map`: the checkpoint wants its own Python code to be run",
            hint="if it is a plain Qwen2 model, remove the `auto_map` entry and the .py files",
        )


def _refuse_other_architectures(config: Json) -> None:
    model_type = config.get("model_type")
    if model_type != "qwen2":
        raise UnsupportedArchitecture(f"config.json: model_type is {model_type!r}, only 'qwen2' is supported")
    architectures = _strings(config, "architectures") or ["Qwen2ForCausalLM"]
    if not {"Qwen2ForCausalLM", "Qwen2Model"}.intersection(architectures):
        raise UnsupportedArchitecture(
            f"config.json: architectures is {architectures!r}, not a causal language model",
            hint="an implicit PRM is a pair of Qwen2ForCausalLM models; classifiers and reward heads are not",
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise UnsupportedArchitecture(
            "config.json has `quantization_config`: the checkpoint is already quantised"
            + (f" ({method})" if isinstance(method, str) else ""),
            hint="export from the original fp32, bf16 or fp16 checkpoint: --format bitsandbytes quantises it",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedArchitecture(
            f"config.json: hidden_act is {config['hidden_act']!r}, Qwen2 has 'silu'"
        )
    # transformers' Qwen2 reads neither key: its q/k/v biases and plain rotary angles are fixed.
    if not config.get("attention_bias", True) or config.get("use_mrope"):
        raise UnsupportedArchitecture(
            "config.json: attention_bias false or use_mrope true is not plain Qwen2"
        )
    if config.get("use_sliding_window"):
        raise UnsupportedArchitecture(
            "config.json: use_sliding_window is true; sliding window attention is not supported",
            hint="set it to false if every sequence fits the window",
        )
    other_layers = set(_strings(config, "layer_types")) - {"full_attention"}
    if other_layers:
        raise UnsupportedArchitecture(
            f"config.json: layer_types names {sorted(other_layers)}, only 'full_attention' is supported"
        )


def _rope_theta(config: Json) -> float:
    """transformers 4: `rope_theta` and `rope_scaling`; transformers 5: both in `rope_parameters`."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping):
            raise CheckpointCorrupt(f"config.json: {key} is not an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or set(rope) - {"rope_type", "type", "rope_theta"}:
            raise UnsupportedArchitecture(
                f"config.json: {key} is {dict(rope)!r}; rope scaling other than 'default' is not supported"
            )
    parameters = config.get("rope_parameters") or {}
    theta = _positive_float(config, "rope_theta", 10000.0)
    nested = _positive_float(parameters, "rope_theta", theta)
    if config.get("rope_theta") is not None and nested != theta:
        raise CheckpointCorrupt(f"config.json: rope_theta is {theta}, rope_parameters say {nested}")
    return nested


def _positive_int(config: Json, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= most:
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, not an integer from 1 to {most}")
    return value


def _positive_float(config: Json, key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, not a positive number")
    return float(value)


def _strings(config: Json, key: str) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, not a list of names")
    return value


def _flag(config: Json, key: str) -> bool:
    value = config.get(key) or False
    if type(value) is not bool:
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, not true or false")
    return value

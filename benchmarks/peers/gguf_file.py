"""Write a Qwen2 checkpoint as a GGUF file: Q8_0 matrices, fp32 norms and biases, no vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from stepscore_export.families.base import DecoderConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Qwen2 tensor.

    >>> gguf_name("model.layers.3.mlp.up_proj.weight"), gguf_name("model.layers.0.self_attn.q_proj.bias")
    ('blk.3.ffn_up.weight', 'blk.0.attn_q.bias')
    """
    if name in NAMES:
        return NAMES[name]
    _, _, index, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{index}.{LAYER_NAMES[module]}.{kind}"


def write_q8_0(checkpoint: Path, config: DecoderConfig, path: Path) -> Path:
    """Write the checkpoint's safetensors as one GGUF file; matrices are quantized in blocks of 32 columns."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants  # noqa: PLC0415 - an extra

    writer = GGUFWriter(path, "qwen2")
    _add_config(writer, config)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:  # not numpy, which has no bfloat16
            for name in file.keys():  # noqa: SIM118 - no mapping
                values: np.ndarray[Any, Any] = file.get_tensor(name).float().numpy()
                if values.ndim == 1:
                    writer.add_tensor(gguf_name(name), values)
                    continue
                codes = quants.quantize(values, GGMLQuantizationType.Q8_0)
                writer.add_tensor(gguf_name(name), codes, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_config(writer: GGUFWriter, config: DecoderConfig) -> None:
    from gguf import LlamaFileType  # noqa: PLC0415

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("none")

"""Synthetic Hugging Face folders, written a row block at a time with nothing but numpy.

    write_checkpoint(folder, TINY, seed=1)                              the reference
    write_checkpoint(folder, TINY, seed=1, perturb=0.01)                the same plus a 1 % difference
    write_checkpoint(folder, TINY, dtype="bfloat16", shards=3, layout=5)

The same arguments give the same bytes; dtype, shards, layout and prefix never change the weights drawn.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stepscore_export.families.base import DecoderConfig, Family, tensor_shapes
from stepscore_export.families.rope import DefaultRope
from stepscore_export.families.supported import FAMILIES

DType = Literal["float32", "float16", "bfloat16"]

# Grouped heads, an intermediate size that is no multiple, a vocabulary padded beyond the tokenizer's.
TINY = DecoderConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=320,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope=DefaultRope(10000.0),
    tie_word_embeddings=False,
)
# One key head, and sizes that fill no block.
ODD = replace(TINY, hidden_size=72, intermediate_size=99, num_key_value_heads=1, head_dim=48, vocab_size=331)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# As in Qwen2: every digit stands alone, punctuation takes a space before it and line breaks after it.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In byte-level spelling (Ċ is "\n", Ġ is " "): enough for a separator that merges with what stands before it.
MERGES = (
    *(("Ċ", "Ċ"), (".", "ĊĊ"), (".", "Ċ"), ("?", "ĊĊ"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "+")),
    *(
        ("Ġ", "="),
        ("Ġ", "Ġ"),
        ("i", "n"),
        ("o", "n"),
        ("e", "r"),
        ("s", "t"),
        ("Ġ", "s"),
        ("st", "e"),
        ("Ġs", "o"),
    ),
)

# Word for word the template of Qwen2.5-Math, which adds the system turn by itself.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\nPlease reason step by step, and put your final answer within"
    " \\\\boxed{}.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class _Draw:
    """How the numbers are drawn; each tensor has a stream of its own, so files can be cut anywhere."""

    shape: DecoderConfig
    seed: int
    scale: float
    perturb: float

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Flat float32 blocks of one tensor."""
        size = tensor_shapes(self.shape)[name]
        key = [self.seed, zlib.crc32(name.encode())]
        base, difference = np.random.default_rng([*key, 0]), np.random.default_rng([*key, 1])
        std = np.float32(0.1 if len(size) == 1 else self.scale / size[-1] ** 0.5)
        remaining = int(np.prod(size))
        while remaining:
            count = min(remaining, _BLOCK_VALUES)
            block = base.standard_normal(count, dtype=np.float32)
            if self.perturb:
                block += np.float32(self.perturb) * difference.standard_normal(count, dtype=np.float32)
            block *= std
            if name.endswith("norm.weight"):
                block += 1
            yield block
            remaining -= count


_STORED: Mapping[DType, tuple[str, Any]] = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
}
_BLOCK_VALUES = 1 << 22


def write_checkpoint(
    folder: Path,
    shape: DecoderConfig = TINY,
    *,
    seed: int = 0,
    dtype: DType = "float32",
    shards: int = 1,
    layout: Literal[4, 5] = 4,
    prefix: str = "model.",
    scale: float = 1.0,
    perturb: float = 0.0,
) -> Path:
    """Write config, tokenizer and weights; returns the folder.

    A matrix [out, in] is drawn from N(0, scale^2 / in), so activations and logits stay near `scale`.
    `perturb` adds an independent N(0, (perturb * scale)^2 / in): |D| / |W| = perturb, tensor by tensor.
    `prefix=""` names tensors as a checkpoint saved from Qwen2Model does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config_json(shape, dtype=dtype, layout=layout))
    write_tokenizer(folder, layout=layout)
    draw = _Draw(shape, seed, scale, perturb)
    names = list(tensor_shapes(shape))
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", draw, names, dtype, prefix)
        return folder
    weight_map: dict[str, str] = {}
    for index, part in enumerate(np.array_split(names, shards), start=1):
        file = f"model-{index:05d}-of-{shards:05d}.safetensors"
        _write_safetensors(folder / file, draw, list(part), dtype, prefix)
        weight_map |= {_stored_name(name, prefix): file for name in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def config_json(
    shape: DecoderConfig, *, dtype: DType = "float32", layout: Literal[4, 5] = 4
) -> dict[str, Any]:
    """`config.json` as transformers 4 or 5 writes it."""
    family = family_of(shape)
    config = msgspec.to_builtins(shape)
    del config["attention_bias"], config["qk_norm"]
    rope = config.pop("rope")
    rope = {"rope_type": rope.pop("type"), "rope_theta": rope.pop("theta"), **rope}
    config |= {
        "architectures": [family.causal_lm],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "bos_token_id": tiny_tokenizer().token_to_id("<|endoftext|>"),
        "eos_token_id": tiny_tokenizer().token_to_id("<|im_end|>"),
        "max_window_layers": shape.num_hidden_layers,
        "use_sliding_window": False,
    }
    if layout == 4:
        config["rope_theta"] = rope.pop("rope_theta")
        scaling = {} if rope == {"rope_type": "default"} else {"rope_scaling": rope}
        return config | scaling | {"sliding_window": 4096, "torch_dtype": dtype}
    layer_types = ["full_attention"] * shape.num_hidden_layers
    return config | {
        "sliding_window": None,
        "dtype": dtype,
        "rope_parameters": rope,
        "layer_types": layer_types,
    }


def family_of(shape: DecoderConfig) -> Family:
    """The family with the traits of a shape."""
    traits = (shape.attention_bias, shape.qk_norm)
    return next(each for each in FAMILIES if (each.attention_bias, each.qk_norm) == traits)


@cache
def tiny_tokenizer() -> Tokenizer:
    """256 bytes and a few merges behind the Qwen2 pre-tokeniser; the special tokens take the last ids."""
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, **byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def write_tokenizer(folder: Path, *, layout: Literal[4, 5] = 4, chat_template: str = CHAT_TEMPLATE) -> None:
    """tokenizer.json and its config; the template inside the config (4) or in a file of its own (5)."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if layout == 4:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        decoder = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in SPECIAL_TOKENS}
        config |= {"added_tokens_decoder": decoder, "chat_template": chat_template}
    else:
        config["backend"] = "tokenizers"
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


def weights(
    shape: DecoderConfig, *, seed: int = 0, scale: float = 1.0, perturb: float = 0.0
) -> dict[str, np.ndarray]:
    """What `write_checkpoint` draws, before it is rounded to the stored dtype."""
    draw = _Draw(shape, seed, scale, perturb)
    return {
        name: np.concatenate(list(draw.blocks(name))).reshape(size)
        for name, size in tensor_shapes(shape).items()
    }


def _write_safetensors(path: Path, draw: _Draw, names: list[str], dtype: DType, prefix: str) -> None:
    """One file of the format: 8 bytes of header length, the header, the tensors without a gap."""
    code, stored = _STORED[dtype]
    shapes = tensor_shapes(draw.shape)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + int(np.prod(shapes[name])) * np.dtype(stored).itemsize
        entry = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        header[_stored_name(name, prefix)] = entry
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for block in draw.blocks(name):
                file.write(block.astype(stored).tobytes())


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; `...` removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: entry for key, entry in value.items() if entry is not ...})


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Let `change` alter the tensors of a small safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def tied(shape: DecoderConfig = TINY) -> DecoderConfig:
    """The same model with the embedding as its head."""
    return replace(shape, tie_word_embeddings=True)


def _stored_name(name: str, prefix: str) -> str:
    return prefix + name.removeprefix("model.") if name.startswith("model.") else name

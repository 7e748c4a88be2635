"""What the numbers should be: log-probabilities of both models, straight from two Hugging Face folders.

Nothing here is shared with stepscore or its exporter: config.json and the safetensors files are read again,
and Qwen2 is written out again, because transformers computes RMSNorm, RoPE and the softmax in float32
whatever the dtype, so that its "fp64" is not. The card's code without its bugs is this file plus `card.py`.
"""

from __future__ import annotations

import enum
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch.nn import functional

HEAD_ROWS = 16_384  # rows of lm_head taken at once: [512, 16384] in fp64 is 67 MB, [512, 152064] would be 620

Tokens = npt.NDArray[np.int64]
Logprobs = npt.NDArray[np.float64]


class Numerics(enum.Enum):
    """Whose forward pass, in which arithmetic, and where the log-softmax is taken."""

    FP64 = "fp64"  # own forward, every operation in float64: the truth the others are measured against
    FP32 = "fp32"  # own forward, every operation in float32, RoPE tables from float64
    PYTORCH_FP32 = "pytorch-fp32"  # transformers' class of the model type, as users run it
    PYTORCH_FP16 = "pytorch-fp16"  # the model in fp16 and log_softmax over its fp16 logits: the card's lines
    PYTORCH_FP16_LOGITS32 = "pytorch-fp16-logits32"  # the model in fp16, log_softmax over logits.float()
    PYTORCH_BF16 = "pytorch-bf16"
    PYTORCH_BF16_LOGITS32 = "pytorch-bf16-logits32"


_OWN = {Numerics.FP64: torch.float64, Numerics.FP32: torch.float32}
_PYTORCH = {
    Numerics.PYTORCH_FP32: (torch.float32, torch.float32),
    Numerics.PYTORCH_FP16: (torch.float16, torch.float16),
    Numerics.PYTORCH_FP16_LOGITS32: (torch.float16, torch.float32),
    Numerics.PYTORCH_BF16: (torch.bfloat16, torch.bfloat16),
    Numerics.PYTORCH_BF16_LOGITS32: (torch.bfloat16, torch.float32),
}


def pair_logprobs(
    policy: Path, reference: Path, sequences: Sequence[Tokens], numerics: Numerics
) -> list[tuple[Logprobs, Logprobs]]:
    """Log-probabilities of policy and reference for each sequence: two float64 [L-1], in nats.

    `[j] = log p(F[j+1] | F[..j])`, normalised over all vocab_size columns. Each runs alone, unpadded.
    """
    by_model = [logprobs(folder, sequences, numerics) for folder in (policy, reference)]
    return list(zip(*by_model, strict=True))


def logprobs(folder: Path, sequences: Sequence[Tokens], numerics: Numerics) -> list[Logprobs]:
    """One model's log-probabilities, float64 [L-1] for each sequence of L >= 1 token ids."""
    ids = [torch.from_numpy(np.asarray(tokens, np.int64)) for tokens in sequences]
    with torch.inference_mode():
        if numerics in _OWN:
            outputs = list(_own(folder, ids, _OWN[numerics]))
        else:
            outputs = list(_pytorch(folder, ids, *_PYTORCH[numerics]))
    return [output.double().numpy() for output in outputs]


def _pytorch(
    folder: Path, sequences: Sequence[torch.Tensor], dtype: torch.dtype, softmax: torch.dtype
) -> Iterator[torch.Tensor]:
    """The card's lines with `.eval()`, a dtype, no padding mask, and a gather of the right rank."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds to import, only needed here

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    for ids in sequences:
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        yield logits.to(softmax).log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]


# Qwen2, written out


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of config.json that the forward pass needs (transformers 4 and 5 layouts)."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> Shape:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        rope: Mapping[str, Any] = config.get("rope_parameters") or config
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            eps=config["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
            tied=config["tie_word_embeddings"],
        )


class Weights:
    """Tensors of a safetensors folder by their name without the `model.` prefix, read when asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._where: dict[str, tuple[Any, str]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file: Any = safe_open(path, "pt")
            self._where |= {name.removeprefix("model."): (file, name) for name in file.keys()}  # noqa: SIM118

    def __call__(self, name: str) -> torch.Tensor:
        file, stored = self._where[name]
        return file.get_tensor(stored).to(self.dtype)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {
            name: tuple(file.get_slice(stored).get_shape()) for name, (file, stored) in self._where.items()
        }

    def blocks(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """The rows of a matrix, `size` at a time."""
        file, stored = self._where[name]
        rows = file.get_slice(stored)
        for start in range(0, rows.get_shape()[0], size):
            yield rows[start : start + size].to(self.dtype)

    def rows(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """`matrix[index]`, with no more of the matrix converted than the rows asked for."""
        file, stored = self._where[name]
        return file.get_tensor(stored)[index].to(self.dtype)


def num_parameters(folder: Path) -> int:
    """How many numbers a checkpoint stores."""
    return sum(math.prod(size) for size in Weights(folder, torch.float32).sizes().values())


def num_matrix_weights(folder: Path) -> int:
    """How many of them multiply rows: the matrices of the layers and the head, tied or not."""
    sizes = Weights(folder, torch.float32).sizes()
    head = "embed_tokens.weight" if Shape.read(folder).tied else "lm_head.weight"
    matrices = [size for name, size in sizes.items() if name.startswith("layers.") and len(size) == 2]
    return sum(map(math.prod, [*matrices, sizes[head]]))


def _own(folder: Path, sequences: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    shape, weights = Shape.read(folder), Weights(folder, dtype)
    hidden = [weights.rows("embed_tokens.weight", ids) for ids in sequences]
    for layer in range(shape.layers):
        block = functools.partial(_block, shape, _layer_weights(weights, layer))
        hidden = [block(rows) for rows in hidden]
    norm = weights("norm.weight")
    head = "embed_tokens.weight" if shape.tied else "lm_head.weight"
    for rows, ids in zip(hidden, sequences, strict=True):
        yield _target_logprobs(weights, head, rms_norm(rows[:-1], norm, shape.eps), ids[1:])


def _layer_weights(weights: Weights, layer: int) -> dict[str, torch.Tensor]:
    names = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.weight"]
    names += [f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")]
    names += [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    return {name: weights(f"layers.{layer}.{name}") for name in names}


def _block(shape: Shape, w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One decoder layer, [L, hidden] -> [L, hidden]."""
    x = x + _attention(shape, w, rms_norm(x, w["input_layernorm.weight"], shape.eps))
    y = rms_norm(x, w["post_attention_layernorm.weight"], shape.eps)
    gated = functional.silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
    return x + gated @ w["mlp.down_proj.weight"].T


def _attention(shape: Shape, w: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    length = len(x)
    q, k, v = (
        (x @ w[f"self_attn.{p}_proj.weight"].T + w[f"self_attn.{p}_proj.bias"])
        .view(length, -1, shape.head_dim)
        .transpose(0, 1)  # [heads, L, head_dim]
        for p in "qkv"
    )
    q, k = rotate(q, shape.rope_theta), rotate(k, shape.rope_theta)
    k, v = (t.repeat_interleave(shape.heads // shape.kv_heads, dim=0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * shape.head_dim**-0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ v
    return mixed.transpose(0, 1).reshape(length, -1) @ w["self_attn.o_proj.weight"].T


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in x's own dtype."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary position embedding of [heads, L, D], halves convention; angles in float64 whatever x's dtype."""
    length, dim = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _target_logprobs(
    weights: Weights, head: str, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """`logit[target] - logsumexp(logits)`, the logits of HEAD_ROWS columns at a time."""
    total = torch.full((len(hidden),), -torch.inf, dtype=hidden.dtype)
    for block in weights.blocks(head, HEAD_ROWS):
        total = torch.logaddexp(total, (hidden @ block.T).logsumexp(dim=-1))
    return (hidden * weights.rows(head, targets)).sum(dim=-1) - total

"""One model of a pair in PyTorch: transformers' stock class with replaced matmuls and attention.

Tokens are packed as in the ONNX graphs: the stock model gets one sequence of n packed tokens and the position
of each, and an attention function registered with transformers gathers the padded view of the plan and
scatters its output back.

Weights are dequantized and activations are not quantized: fp32 on the CPU, fp16 on CUDA. bitsandbytes' own
matmuls are not used. LLM.int8() selects outlier columns per *batch*, so a token's log-prob would depend on
the tokens after it, and a step's reward on later steps. The 4-bit matmul rounds activations to bf16 on CPUs
with AVX512-BF16, so log-probs would differ between machines.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import TILE
from stepscore.batching.batch import Batch, chunks
from stepscore.engine.base import logprobs_of
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.loading import Device

if TYPE_CHECKING:
    import torch

ATTENTION = "stepscore_packed"


class Model:
    """One model in memory, in fp32 on the CPU and fp16 on CUDA; its weights need not be quantized."""

    def __init__(self, folder: Path, device: Device, settings: Mapping[str, Any]) -> None:
        import torch
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, _packed_attention)
        self._device = device.value
        self._compute = torch.float32 if device is Device.CPU else torch.float16
        self._model = loading.from_pretrained(
            folder, settings, dtype="auto", attention=ATTENTION, device_map={"": self._device}
        )
        _replace_matmuls(self._model, self._compute)

    def logprobs(self, batch: Batch, head_rows: int) -> NDArray[np.float32]:
        """Return the log-probs [t] of a batch's targets; the head runs on `head_rows` tokens at a time."""
        return self.trace(batch, head_rows)[1]

    def trace(self, batch: Batch, head_rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the final hidden states [m, hidden_size], the head's input, and the log-probs [t]."""
        import torch

        with torch.inference_mode():
            hidden = self._body(batch)
            parts = [
                torch.cat(list(self._tiles(hidden[self._on_device(rows)], self._on_device(targets))), dim=2)
                for _, rows, targets in chunks(batch, head_rows)
            ]
            return hidden.float().cpu().numpy(), logprobs_of(torch.cat(parts).cpu().numpy())

    def _body(self, batch: Batch) -> torch.Tensor:
        """Run all layers; return the final hidden states of the scored tokens, [m, hidden_size]."""
        pad_index, unpad_index = self._on_device(batch.pad_index), self._on_device(batch.unpad_index)
        embedding = self._model.model.embed_tokens
        rows = embedding(self._on_device(batch.input_ids)).to(self._compute)
        output = self._model.model(
            inputs_embeds=rows[None],
            position_ids=(unpad_index % pad_index.shape[1])[None],
            use_cache=False,
            pad_index=pad_index,
            unpad_index=unpad_index,
        )
        hidden: torch.Tensor = output.last_hidden_state[0, self._on_device(batch.score_index)]
        return hidden

    def _tiles(self, rows: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield, per vocabulary tile, [p, 2, 1]: the target's logit (0 in other tiles) and the log-sum-exp.

        rows: hidden states [c, hidden_size]; targets: int64 [p, 2], (index into rows, token id).
        """
        import torch

        head = self._model.lm_head.weight
        row, token = targets.unbind(-1)
        for first in range(0, len(head), TILE):
            weight = head[first : first + TILE].to(rows.dtype)
            logits = torch.nn.functional.linear(rows, weight).float()
            column = token - first
            here = (column >= 0) & (column < len(weight))
            logit = logits[row, column.clamp(0, len(weight) - 1)].where(here, 0)
            yield torch.stack([logit, logits.logsumexp(-1)[row]], dim=-1)[..., None]

    def _on_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    pad_index: torch.Tensor,
    unpad_index: torch.Tensor,
    scaling: float,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention of every sequence of the padded view.

    query [1, heads, n, head_dim], key and value [1, kv_heads, n, head_dim], after RoPE; pad_index [B, S] and
    unpad_index [n] as in batching.batch.Batch. Returns [1, n, heads, head_dim].
    """
    import torch

    padded = [
        each[0][:, pad_index].transpose(0, 1) for each in (query, key, value)
    ]  # [B, heads, S, head_dim]
    attended = torch.nn.functional.scaled_dot_product_attention(
        *padded, is_causal=True, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).flatten(0, 1)[unpad_index][None], None


def _replace_matmuls(model: Any, compute: torch.dtype) -> None:
    """Replace every linear layer by dequantization and a matmul in `compute`; cast norms and biases to it."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        _check_stored(module)
        if isinstance(module, Linear4bit):
            matrix = partial(_four_bits, module.weight, _in_blocks(module.weight.quant_state, compute))
        elif isinstance(module, Linear8bitLt):
            matrix = partial(_eight_bits, module.weight, compute)
        else:
            matrix = partial(module.weight.to, compute)
        module.forward = partial(_linear, matrix, module)
    for parameter in model.parameters():
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(compute)


def _check_stored(module: Any) -> None:
    """Raise ValueError where the stored codes of a matrix are not those of its shape."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    size = module.out_features, module.in_features
    weight = module.weight
    if isinstance(module, Linear4bit):
        state = weight.quant_state
        blocks = math.ceil(math.prod(size) / state.blocksize)
        if tuple(state.shape) != size or state.absmax.numel() != blocks or weight.dtype != torch.uint8:
            raise ValueError(f"a 4-bit matrix does not hold {size[0]} x {size[1]} codes and their scales")
    elif isinstance(module, Linear8bitLt):
        scales = weight.SCB
        if weight.dtype != torch.int8 or scales is None or tuple(scales.shape) != size[:1]:
            raise ValueError(f"an 8-bit matrix does not hold {size[0]} x {size[1]} codes and a scale per row")


def _linear(matrix: Callable[[], torch.Tensor], module: Any, rows: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.linear(rows, matrix(), module.bias)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How the codes of a matrix are dequantized: as rows of whole blocks, then reshaped to `shape`."""

    state: Any
    shape: tuple[int, ...]


def _in_blocks(state: Any, compute: torch.dtype) -> _Blocks:
    """Return a quantization state whose rows end with a block, over the same codes.

    Blocks run on across rows. The kernel for CPUs with AVX-512 (bitsandbytes 0.50.2) uses wrong scales where
    the row length is not a multiple of the block size; it is given rows of one block, or a single row.
    """
    shape = tuple(state.shape)
    count = math.prod(shape)
    rows = copy.copy(state)
    rows.shape = (count // state.blocksize, state.blocksize) if count % state.blocksize == 0 else (1, count)
    rows.dtype = compute
    return _Blocks(rows, shape)


def _four_bits(weight: Any, blocks: _Blocks) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    values: torch.Tensor = dequantize_4bit(weight.data, blocks.state)
    return values.reshape(blocks.shape)


def _eight_bits(weight: Any, compute: torch.dtype) -> torch.Tensor:
    """Return codes * absmax / 127, one absmax per row."""
    values: torch.Tensor = weight.data.to(compute).mul_((weight.SCB / 127).to(compute)[:, None])
    return values

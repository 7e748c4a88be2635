"""A checkpoint rounded as a pair of one precision is, by the same rule written again in torch.

Run in fp64 it says what the pair gives if storage costs nothing but the rounding of the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from stepscore.choices import Precision

BLOCK = 32
_FLOATS = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_TABLES = ("embed_tokens.weight", "lm_head.weight")  # at 8 bits or better


def rounded_checkpoint(source: Path, output: Path, precision: Precision) -> Path:
    """Copy a folder with every matrix rounded as `precision` stores it; norms and biases stay as they are."""
    shutil.copytree(source, output)
    for path in output.glob("*.safetensors"):
        save_file({name: _rounded(name, w.float(), precision) for name, w in load_file(path).items()}, path)
    return output


def _rounded(name: str, weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    if weight.ndim == 1:
        return weight
    if precision in _FLOATS:
        return weight.to(_FLOATS[precision]).float()
    return block_rounded(weight, 8 if name.endswith(_TABLES) else _BITS[precision])


def block_rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Blocks of 32 columns on a grid of 2^bits codes around zero, its signed maximum on the longer end.

    >>> block_rounded(torch.tensor([[-8.0, 1.4, 7.9, 0.4]]), bits=4)
    tensor([[-8.,  1.,  7.,  0.]])
    """
    rows, columns = weight.shape
    half = 2 ** (bits - 1)
    blocks = functional.pad(weight, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    scale = torch.where(high > -low, high, low) / -half  # at a tie the exporter takes the low one
    inverse = torch.where(
        scale == 0, 0, 1 / scale
    )  # multiplied, not divided by: else some codes differ by one
    codes = (blocks * inverse).round().clamp(-half, half - 1)
    return (codes * scale).view(rows, -1)[:, :columns].contiguous()

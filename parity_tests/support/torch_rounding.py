"""Checkpoints rounded as a pair stores them, by the same rules written again in torch.

Run in fp64 they say what the pair gives if storage costs nothing but the rounding of the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from parity_tests.support.random_pairs import Models
from safetensors.torch import load_file, save_file
from torch.nn import functional

from stepscore.enums import Activations, Coding, DifferencePrecision, Precision
from stepscore_export.options import ExportOptions

Tensors = Mapping[str, torch.Tensor]

_FLOATS = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_DIFFERENCE_BITS = {DifferencePrecision.INT8: 8, DifferencePrecision.INT4: 4, DifferencePrecision.INT2: 2}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rounded_models(source: Models, folder: Path, options: ExportOptions) -> Models:
    """Copy both checkpoints with every matrix as the pair stores it, in fp32; norms and biases stay.

    A coded pair must say so, not calibrated, with activations left exact. Its heads are no longer tied: there
    the embedding stays as it is.
    """
    rounded = Models(folder / "policy", folder / "reference")
    for here, there in ((source.policy, rounded.policy), (source.reference, rounded.reference)):
        shutil.copytree(here, there)
    if options.coding is Coding.DIFFERENCE:
        assert options.activations is Activations.EXACT
        reference, policy = _untied(rounded.reference), _untied(rounded.policy)
        bases = {name: _base(name, weight, options) for name, weight in reference.items()}
        _write(rounded.reference, bases)
        _write(rounded.policy, {n: _moved(n, w, reference[n], bases[n], options) for n, w in policy.items()})
    else:
        for copy in (rounded.policy, rounded.reference):
            _write(copy, {name: _alone(name, weight, options) for name, weight in _read(copy).items()})
    return rounded


def _alone(name: str, weight: torch.Tensor, options: ExportOptions) -> torch.Tensor:
    """A weight of one model: embedding and head at 8 bits or better."""
    if weight.ndim == 1:
        return weight
    if options.precision in _FLOATS:
        return weight.to(_FLOATS[options.precision]).float()
    bits = 8 if name in (_EMBEDDING, _HEAD) else _BITS[options.precision]
    return block_rounded(weight, bits, options.block_size)


def _base(name: str, weight: torch.Tensor, options: ExportOptions) -> torch.Tensor:
    """A weight of the reference of a coded pair: attention and head at 8 bits, the embedding as it is.

    In blocks of half the size, but no less than 16; at 4 bits with zero points.
    """
    if weight.ndim == 1 or name == _EMBEDDING:
        return weight
    block = max(16, options.block_size // 2)
    if options.precision is Precision.INT4 and name != _HEAD and ".self_attn." not in name:
        return block_rounded_with_zeros(weight, 4, block)
    return block_rounded(weight, 8, block)


def _moved(
    name: str, weight: torch.Tensor, reference: torch.Tensor, base: torch.Tensor, options: ExportOptions
) -> torch.Tensor:
    """A weight of the policy: the base plus the difference, rounded to its own bits, to 8 in the head."""
    if weight.ndim == 1 or name == _EMBEDDING:
        return weight
    assert options.difference_precision is not None
    bits = 8 if name == _HEAD else _DIFFERENCE_BITS[options.difference_precision]
    return base + block_rounded(weight - reference, bits, options.block_size)


def block_rounded(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Blocks of columns on a grid of 2^bits codes around zero, their signed maximum on the longer end.

    >>> block_rounded(torch.tensor([[-8.0, 1.4, 7.9, 0.4]]), bits=4, block=4)
    tensor([[-8.,  1.,  7.,  0.]])
    """
    half = 2 ** (bits - 1)
    blocks = _blocks(weight, block)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    scale = torch.where(high > -low, high, low) / -half  # at a tie the exporter takes the low one
    codes = (blocks * _inverse(scale)).round().clamp(-half, half - 1)
    return _joined(codes * scale, weight)


def block_rounded_with_zeros(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Blocks of columns on a grid of 2^bits codes from their lowest entry to their highest, 0 one of them.

    >>> block_rounded_with_zeros(torch.tensor([[-1.0, 1.4, 14.0, 0.4]]), bits=4, block=4)
    tensor([[-1.,  1., 14.,  0.]])
    """
    top = 2**bits - 1
    blocks = _blocks(weight, block)
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / top
    below = torch.where(scale == 0, 0, -low / scale).round()  # codes under that of 0
    codes = torch.minimum(torch.maximum((blocks * _inverse(scale)).round(), -below), top - below)
    return _joined(codes * scale, weight)


def _blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    rows, columns = weight.shape
    return functional.pad(weight, (0, -columns % block)).view(rows, -1, block)


def _joined(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    return blocks.view(rows, -1)[:, :columns].contiguous()


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    """Multiplied with, not divided by: else some codes differ by one."""
    return torch.where(scale == 0, 0, 1 / scale)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in fp32."""
    return {n: w.float() for path in folder.glob("*.safetensors") for n, w in load_file(path).items()}


def _untied(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, the head one of them; config.json says so."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = _read(folder)
    return {_HEAD: tensors[_EMBEDDING].clone(), **tensors}


def _write(folder: Path, tensors: Tensors) -> None:
    """Replace the weights by these, in one file."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_file(dict(tensors), folder / "model.safetensors")

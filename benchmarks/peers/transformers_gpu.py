"""transformers on a GPU: models with random weights, with or without bitsandbytes' linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import SequenceLogprobs, Tokens
from benchmarks.peers.transformers_card import padded_logprobs

from stepscore.enums import Provider

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM


def random_model(folder: Path, precision: str, device: Provider) -> Qwen2ForCausalLM:
    """Return a model of a checkpoint's shape with random weights: fp16, bf16, int8 or nf4.

    With bitsandbytes (int8, nf4) one layer is made, and run as often as there are layers.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    config = AutoConfig.from_pretrained(folder)
    layers, by_bitsandbytes = config.num_hidden_layers, precision in {"int8", "nf4"}
    if by_bitsandbytes:
        config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.device(device.value):
        model: Qwen2ForCausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    if by_bitsandbytes:
        _quantize(model.model.layers[0], precision, device)
        model.model.layers = torch.nn.ModuleList(list(model.model.layers) * layers)
        config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    return model


def _quantize(module: torch.nn.Module, precision: str, device: Provider) -> None:
    """Replace linear layers with bitsandbytes'."""
    import bitsandbytes as bnb  # noqa: PLC0415
    import torch  # noqa: PLC0415

    for name, child in module.named_children():
        if not isinstance(child, torch.nn.Linear):
            _quantize(child, precision, device)
            continue
        size, bias = (child.in_features, child.out_features), child.bias is not None
        if precision == "int8":
            quantized = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False)
        else:
            quantized = bnb.nn.LinearNF4(*size, bias=bias, compute_dtype=torch.float16)
        quantized.load_state_dict(child.cpu().state_dict())
        setattr(module, name, quantized.to(device.value))


def by_torch(models: Sequence[Any], sequences: Sequence[Tokens], batch: int) -> list[SequenceLogprobs]:
    """Score batch by batch, each with both models."""
    starts = range(0, len(sequences), batch)
    batches = ([padded_logprobs(model, sequences[i : i + batch]) for model in models] for i in starts)
    return [pair for of_batch in batches for pair in zip(*of_batch, strict=True)]

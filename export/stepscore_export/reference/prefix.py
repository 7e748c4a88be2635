"""What a checkpoint makes of the tokens that every record begins with, in fp32 from its own weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.prefix import ModelPrefix
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.reference.layerwise_fp32 import ExactModel, Rows


def model_prefix(checkpoint: WeightSource, stored: WeightSource, token_ids: NDArray[np.int64]) -> ModelPrefix:
    """Run the tokens [P] through the checkpoint, a layer at a time.

    The values and hidden rows that come out are those of `stored`, the same model as it is written to the
    pair: where that is rotated, so are they.
    """
    following = np.append(token_ids, token_ids[-1])  # a row has a log-prob only where a token follows it
    model = ExactModel(checkpoint, [following])
    keys_values = []
    for index in range(checkpoint.config.num_hidden_layers):
        seen: dict[str, Rows] = {}
        model.run_next_layer(seen.__setitem__)
        layer = f"model.layers.{index}.self_attn"
        keys, values = (
            _projected(checkpoint, f"{layer}.{kind}_proj", seen["into_qkv"][:-1]) for kind in "kv"
        )
        if checkpoint.config.qk_norm:
            keys = _normed_heads(checkpoint, f"{layer}.k_norm", keys)
        keys_values.append(np.concatenate([keys, stored.values_as_stored(values)], axis=-1))
    (normed,) = model.normed()
    (logprobs,) = model.logprobs()
    of_tokens = np.append(0, logprobs[:-1]).astype(np.float32)
    return ModelPrefix(np.stack(keys_values), stored.head_input(normed), of_tokens)


def _projected(checkpoint: WeightSource, name: str, rows: Rows) -> Rows:
    projected = rows @ checkpoint.rows(f"{name}.weight").T
    return projected + checkpoint.rows(f"{name}.bias") if checkpoint.config.attention_bias else projected


def _normed_heads(checkpoint: WeightSource, name: str, rows: Rows) -> Rows:
    """Return rows [n, heads * D], those of each head RMS-normed."""
    heads = rows.reshape(len(rows), -1, checkpoint.config.head_dim)
    squares = np.square(heads).mean(axis=-1, keepdims=True)
    normed: Rows = heads / np.sqrt(squares + np.float32(checkpoint.config.rms_norm_eps))
    return (normed * checkpoint.rows(f"{name}.weight")).reshape(rows.shape)

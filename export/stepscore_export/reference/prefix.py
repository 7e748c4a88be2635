"""What a checkpoint makes of the tokens that every record begins with, in fp32 from its own weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.prefix import ModelPrefix
from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.reference.layerwise_fp32 import ExactModel, Rows


def model_prefix(checkpoint: WeightSource, token_ids: NDArray[np.int64], scratch: Path) -> ModelPrefix:
    """Run the tokens [P] through the model, a layer at a time; `scratch` has room for one layer.

    Rotated weights give rotated values and hidden rows: those that the graphs of these weights read.
    """
    following = np.append(token_ids, token_ids[-1])  # a row has a log-prob only where a token follows it
    model = ExactModel(checkpoint, [following], scratch)
    keys_values = []
    for index in range(checkpoint.config.num_hidden_layers):
        seen: dict[str, Rows] = {}
        model.run_next_layer(seen.__setitem__)
        layer = f"model.layers.{index}.self_attn"
        entering = seen["into_qkv"]
        keys_values.append(
            np.concatenate(
                [
                    entering[:-1] @ checkpoint.rows(f"{layer}.{kind}_proj.weight").T
                    + checkpoint.rows(f"{layer}.{kind}_proj.bias")
                    for kind in "kv"
                ],
                axis=-1,
            )
        )
    (hidden,) = model.hidden()
    (logprobs,) = model.logprobs()
    of_tokens = np.append(0, logprobs[:-1]).astype(np.float32)
    return ModelPrefix(np.stack(keys_values), hidden, of_tokens)

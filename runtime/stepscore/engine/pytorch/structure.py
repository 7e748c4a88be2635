"""The structure of a pair's models: how many parameters they have, and whether transformers' class has those.

transformers allocates every parameter of the class that a configuration names, and only then finds that the
file has no such tensor. A class of another structure is found here, before it takes memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepscore.artifact.manifest import Architecture
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.refusal import refuse


def num_parameters(shape: Architecture, *, tied: bool) -> int:
    """Return the number of parameters of a model, one with a tied head or one with its own.

    The models of a pair have an embedding, layers and a final norm; a layer has two norms, the projections of
    query, key, value (with biases or without) and output, norms of query and key or none, and a gated MLP.
    """
    hidden = shape.hidden_size
    queries = shape.num_attention_heads * shape.head_dim
    attended = queries + 2 * shape.num_key_value_heads * shape.head_dim  # rows of query, key and value
    layer = hidden * (2 + attended + queries + 3 * shape.intermediate_size)
    layer += attended * shape.attention_bias + 2 * shape.head_dim * shape.qk_norm
    vocabulary = hidden * shape.vocab_size
    return shape.num_hidden_layers * layer + hidden + vocabulary * (1 if tied else 2)


def check_structure(name: str, settings: Mapping[str, Any], shape: Architecture) -> None:
    """Raise ModelInvalid where the class that transformers has for `settings` is not a model of that shape.

    settings: configuration of the model `name`, as checked_config returns it. Nothing is allocated.
    """
    import torch
    from transformers import AutoModelForCausalLM

    plain = {key: value for key, value in settings.items() if key != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(loading.configuration(plain), trust_remote_code=False)
    found = sum(parameter.numel() for parameter in model.parameters())
    expected = num_parameters(shape, tied=settings["tie_word_embeddings"])
    if found != expected:
        refuse(
            name,
            f"model_type is {settings['model_type']!r}, a model of {found:,} parameters; "
            f"the manifest's has {expected:,}",
        )

"""Maps the tensor names of a model to those that a checkpoint stores, wrapped by a trainer or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.checkpoint.safetensors_reader import StoredTensor, check_tensor
from stepscore_export.families.base import EMBEDDING, HEAD, DecoderConfig, Family, tensor_shapes

# Attributes that hold the model inside a wrapper, in front of its names: those of peft, TRL, vision-language
# models, and `model` once more.
_OUTER = frozenset({"base_model", "model", "pretrained_model", "language_model"})
# Wrappers of any module: DataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing.
_ANYWHERE = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_VALUE_HEAD = "v_head."
"""Head of TRL's critic, which reads the last hidden state and changes no log-prob."""


@dataclass(frozen=True, slots=True)
class Names:
    """Where the tensors of a model are, and what is stored beside them."""

    stored: dict[str, str]
    """Stored names by the model's."""
    head_copy: StoredTensor | None
    """A tied checkpoint's copy of its embedding."""
    wrapper: str | None
    """A stored name that only the wrapper of a trainer gives; None where transformers finds all."""


def bare_name(stored: str) -> str:
    """Return a tensor's name inside the model, without any wrapper's.

    >>> bare_name("_orig_mod.module.model.layers.0.mlp.up_proj.weight")
    'layers.0.mlp.up_proj.weight'
    """
    parts = [part for part in stored.split(".") if part not in _ANYWHERE]
    start = next((index for index, part in enumerate(parts) if part not in _OUTER), len(parts))
    return ".".join(parts[start:])


def match_names(tensors: Mapping[str, StoredTensor], family: Family, config: DecoderConfig) -> Names:
    """Find every tensor of the model, check its shape and dtype, and refuse what else is stored."""
    shapes = tensor_shapes(config)
    by_bare: dict[str, str] = {}
    for stored in tensors:
        other = by_bare.setdefault(bare_name(stored), stored)
        if other != stored:
            raise UnsupportedArchitecture(
                f"{other} and {stored} are the same tensor in different wrappers",
                hint="the checkpoint holds more than one model: save the one alone, with its save_pretrained",
            )
    names = {name: by_bare.get(name.removeprefix("model."), "") for name in shapes}
    if missing := [name for name, stored in names.items() if not stored]:
        raise _missing(missing, tensors, family, config)
    for name, stored in names.items():
        check_tensor(tensors[stored], shapes[name])
    head = by_bare.get(HEAD)
    head_copy = tensors[head] if config.tie_word_embeddings and head is not None else None
    if head_copy is not None:
        check_tensor(head_copy, shapes[EMBEDDING])
    # Rotary frequencies were saved by early versions of transformers and follow from rope_theta. Anything
    # else that is not in the model (adapters, a score head, other norms) would change what it computes.
    unknown = sorted(
        stored
        for bare, stored in by_bare.items()
        if stored not in names.values()
        and bare != HEAD
        and not bare.startswith(_VALUE_HEAD)
        and not bare.endswith(".rotary_emb.inv_freq")
    )
    if unknown:
        raise _unknown(unknown, family, config)
    wrapped = (stored for name, stored in names.items() if stored not in {name, name.removeprefix("model.")})
    return Names(names, head_copy, next(wrapped, None))


def _missing(
    missing: list[str], tensors: Iterable[str], family: Family, config: DecoderConfig
) -> CheckpointCorrupt:
    if missing == [HEAD]:
        bare = EMBEDDING not in tensors and EMBEDDING.removeprefix("model.") in tensors
        saved_from = f" (it was saved from {family.base_model}, without the head)" if bare else ""
        return CheckpointCorrupt(
            f"{HEAD} is missing and config.json does not tie it to the embedding{saved_from}",
            hint="set tie_word_embeddings to true in config.json if the model was trained so; else use a "
            f"revision saved from {family.causal_lm}: with a random head every score would be random",
        )
    stored = list(tensors)
    total = len(tensor_shapes(config))
    others = f", and {len(missing) - 1} of the model's {total - 1} others" if len(missing) > 1 else ""
    beside = f"; it holds {len(stored)}, such as {min(stored)}" if len(missing) == total and stored else ""
    return CheckpointCorrupt(
        f"{missing[0]} is missing from the checkpoint{others}{beside}",
        hint=f"download it again, all shards; or save it from {family.causal_lm} itself, taken out of what "
        "wraps it: model.save_pretrained(folder)",
    )


def _unknown(unknown: list[str], family: Family, config: DecoderConfig) -> UnsupportedArchitecture:
    message = f"{len(unknown)} tensors are not part of {family.causal_lm}, such as {unknown[0]}"
    layers = {name.split(".")[1] for name in map(bare_name, unknown) if name.startswith("layers.")}
    beyond = [index for index in layers if index.isdecimal() and int(index) >= config.num_hidden_layers]
    if any(".lora_" in name or ".base_layer." in name for name in unknown):
        hint = "the weights hold an adapter that is not merged: save peft's merge_and_unload()"
    elif beyond:
        message += f": config.json says num_hidden_layers {config.num_hidden_layers}"
        hint = "use the config.json that was saved with these weights"
    else:
        hint = "classifiers, reward heads and other architectures are not supported"
    return UnsupportedArchitecture(message, hint=hint)

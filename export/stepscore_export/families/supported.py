"""The families that can be exported, and how a checkpoint finds its own."""

from __future__ import annotations

from collections.abc import Mapping

from stepscore.errors import CheckpointUnsafe, UnsupportedArchitecture
from stepscore_export.families.base import DecoderConfig, Family, Json
from stepscore_export.families.config_values import strings
from stepscore_export.families.decoder_config import decoder_config
from stepscore_export.families.llama import LLAMA
from stepscore_export.families.qwen2 import QWEN2
from stepscore_export.families.qwen3 import QWEN3

FAMILIES: tuple[Family, ...] = (QWEN2, QWEN3, LLAMA)

# Classes around a causal language model that trainers save as its own: of peft, TRL and torch.compile. The
# names of the tensors tell whether it is one.
_WRAPPERS = ("PeftModelForCausalLM", "AutoModelForCausalLMWithValueHead", "OptimizedModule")
_QUANTIZED = ("quantization_config", "compression_config")


def read_config(config: Json) -> tuple[Family, DecoderConfig]:
    """Return the family that `config.json` names and the configuration that the family reads from it.

    Raises CheckpointUnsafe (`auto_map`), UnsupportedArchitecture (anything but a supported causal language
    model in floating point) and CheckpointCorrupt (a value that is missing or impossible).
    """
    reject_remote_code(config, "config.json")
    family = _named(config.get("model_type"))
    architectures = strings(config, "architectures") or [family.causal_lm]
    known = {family.causal_lm, family.base_model, f"FSDP{family.causal_lm}", *_WRAPPERS}
    if not known.intersection(architectures):
        raise UnsupportedArchitecture(
            f"config.json: architectures is {architectures!r}, not a causal language model",
            hint=f"use two {family.causal_lm} checkpoints; classifiers and reward heads are not supported",
        )
    key = next((key for key in _QUANTIZED if config.get(key)), None)
    if key is not None:
        quantized = config[key]
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
        raise UnsupportedArchitecture(
            f"config.json has `{key}`: the checkpoint is already quantized"
            + (f" ({method})" if isinstance(method, str) else ""),
            hint="export from the original fp32, bf16 or fp16 checkpoint: --format bitsandbytes quantizes it",
        )
    return family, decoder_config(config, family)


def reject_remote_code(config: Json, name: str) -> None:
    """Raise CheckpointUnsafe where the file `name` asks for Python code of the checkpoint to be run."""
    if config.get("auto_map"):
        raise CheckpointUnsafe(
            f"{name} has `auto_map`: the checkpoint asks for its own Python code to be run",
            hint="if the model works without that code, remove the `auto_map` entry and the .py files",
        )


def _named(model_type: object) -> Family:
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(repr(family.model_type) for family in FAMILIES)
    models = "; ".join(f"{family.model_type}: {', '.join(family.published)}" for family in FAMILIES)
    raise UnsupportedArchitecture(
        f"config.json: model_type is {model_type!r}, supported: {supported}",
        hint=f"use checkpoints of a supported family, such as {models}",
    )

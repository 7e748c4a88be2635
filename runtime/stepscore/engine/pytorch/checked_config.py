"""Read config.json of a bitsandbytes model as `stepscore export` writes it, and give transformers no more.

transformers follows many keys: other attention, other quantization, other code. Only those that a pair needs
are passed on, after a comparison with the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepscore.artifact.manifest import CONFIG, Architecture, Manifest, Unit, safetensors_files
from stepscore.engine.pytorch.checked_rope import checked_rope
from stepscore.engine.pytorch.refusal import expect, positive, refuse, shown
from stepscore.engine.pytorch.structure import num_parameters
from stepscore.enums import Precision
from stepscore.fileio import read_regular

INDEX = "model.safetensors.index.json"
_COMPARED_OTHERWISE = {"head_dim", "max_position_embeddings", "attention_bias", "qk_norm"}
_SHAPE = tuple(name for name in Architecture.__struct_fields__ if name not in _COMPARED_OTHERWISE)
_MODEL_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_DTYPES = ("float32", "float16", "bfloat16")
_NOT_USED = {
    "load_in_4bit": False,
    "load_in_8bit": False,
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_skip_modules": None,
}
"""Settings that change how weights are stored, as every export leaves them."""


def checked_config(pair: Path, manifest: Manifest, unit: Unit) -> dict[str, Any]:
    """Return the configuration of one model; raise ModelInvalid where it is not that of the manifest.

    Its `model_type` names a class of transformers; check_structure compares that with the manifest.
    """
    _check_sizes(manifest, unit)
    name = f"{unit.folder}/{CONFIG}"
    config = _json_object(pair / name, name)
    shape = manifest.architecture
    for key in _SHAPE:
        expect(name, config, key, getattr(shape, key))
    if config.get("head_dim") is not None or shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        expect(name, config, "head_dim", shape.head_dim)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        refuse(name, f"model_type is {shown(model_type)}, expected the name of an architecture")
    positions = config.get("max_position_embeddings")  # a pair reads the texts that both of its models do
    if type(positions) is not int or positions < shape.max_position_embeddings:
        refuse(name, f"max_position_embeddings is {shown(positions)}, expected as many as the pair")
    expect(name, config, "hidden_act", "silu")
    if config.get("layer_types") is not None:
        expect(name, config, "layer_types", ["full_attention"] * shape.num_hidden_layers)
    if config.get("use_sliding_window") is not None:
        expect(name, config, "use_sliding_window", False)
    if type(config.get("tie_word_embeddings")) is not bool:
        refuse(name, f"tie_word_embeddings is {shown(config.get('tie_word_embeddings'))}")
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype not in _DTYPES:
        refuse(name, f"dtype is {shown(dtype)}, expected one of {', '.join(_DTYPES)}")
    _check_index(pair, manifest, unit)
    return {
        "model_type": model_type,
        **{key: getattr(shape, key) for key in (*_SHAPE, "head_dim", "max_position_embeddings")},
        "hidden_act": "silu",
        "rms_norm_eps": positive(name, "rms_norm_eps", config.get("rms_norm_eps")),
        "tie_word_embeddings": config["tie_word_embeddings"],
        "dtype": dtype,
        **checked_rope(name, config),
        "quantization_config": _quantization(name, config.get("quantization_config"), manifest.precision),
    }


def _quantization(name: str, found: object, precision: Precision) -> dict[str, Any]:
    if not isinstance(found, Mapping) or found.get("quant_method") != "bitsandbytes":
        refuse(name, "quantization_config is not one of bitsandbytes")
    loads = "load_in_8bit" if precision is Precision.INT8 else "load_in_4bit"
    settings = {**_NOT_USED, loads: True}
    if precision is not Precision.INT8:
        settings["bnb_4bit_quant_type"] = precision.value
    for key, value in settings.items():
        if found.get(key, _NOT_USED.get(key)) != value:
            refuse(f"{name}: quantization_config", f"{key} is {shown(found.get(key))}, expected {value!r}")
    return {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": "float32", **settings}


def _check_sizes(manifest: Manifest, unit: Unit) -> None:
    """Refuse a shape whose weights do not fit the files: transformers would allocate them first."""
    least = num_parameters(manifest.architecture, tied=True) // 2  # at 4 bits
    size = sum(manifest.files[name].size for name in safetensors_files(manifest, unit))
    if size < least:
        refuse(unit.folder, f"its weight files have {size:,} bytes; a model of its shape has {least:,}")


def _check_index(pair: Path, manifest: Manifest, unit: Unit) -> None:
    name = f"{unit.folder}/{INDEX}"
    if name not in manifest.files:
        return
    shards = _json_object(pair / name, name).get("weight_map")
    known = {path.rpartition("/")[2] for path in safetensors_files(manifest, unit)}
    if not isinstance(shards, Mapping) or not {*map(str, shards.values())} <= known:
        refuse(name, "weight_map names files that the manifest does not list")


def _json_object(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        refuse(name, f"it cannot be read: {error}")
    if not isinstance(found, dict):
        refuse(name, "it is not a JSON object")
    return found

"""Read config.json of a bitsandbytes model as `stepscore export` writes it, and give transformers no more.

transformers follows many keys: other attention, other quantization, other code. Only those that a pair needs
are passed on, after a comparison with the manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from stepscore.artifact.manifest import CONFIG, Architecture, Manifest, Unit, safetensors_files
from stepscore.enums import Precision
from stepscore.errors import ModelInvalid
from stepscore.fileio import read_regular

INDEX = "model.safetensors.index.json"
_NOT_SIZES = {"head_dim", "attention_bias", "qk_norm"}
_SHAPE = tuple(name for name in Architecture.__struct_fields__ if name not in _NOT_SIZES)
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
    """Return the configuration of one model; raise ModelInvalid where it is not that of the manifest."""
    _check_sizes(manifest, unit)
    name = f"{unit.folder}/{CONFIG}"
    config = _json_object(pair / name, name)
    shape = manifest.architecture
    for key in _SHAPE:
        _expect(name, config, key, getattr(shape, key))
    if config.get("head_dim") is not None or shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        _expect(name, config, "head_dim", shape.head_dim)
    _expect(name, config, "model_type", "qwen2")
    _expect(name, config, "hidden_act", "silu")
    if config.get("layer_types") is not None:
        _expect(name, config, "layer_types", ["full_attention"] * shape.num_hidden_layers)
    if config.get("use_sliding_window") is not None:
        _expect(name, config, "use_sliding_window", False)
    if type(config.get("tie_word_embeddings")) is not bool:
        _refuse(name, f"tie_word_embeddings is {_shown(config.get('tie_word_embeddings'))}")
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype not in _DTYPES:
        _refuse(name, f"dtype is {_shown(dtype)}, expected one of {', '.join(_DTYPES)}")
    _check_index(pair, manifest, unit)
    theta = _rope_theta(name, config)
    heads = {} if config.get("head_dim") is None else {"head_dim": shape.head_dim}
    return {
        **{key: getattr(shape, key) for key in _SHAPE},
        **heads,
        "rms_norm_eps": _positive(name, "rms_norm_eps", config.get("rms_norm_eps")),
        "tie_word_embeddings": config["tie_word_embeddings"],
        "dtype": dtype,
        # transformers 4 reads the first of these, transformers 5 the second
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "quantization_config": _quantization(name, config.get("quantization_config"), manifest.precision),
    }


def _quantization(name: str, found: object, precision: Precision) -> dict[str, Any]:
    if not isinstance(found, Mapping) or found.get("quant_method") != "bitsandbytes":
        _refuse(name, "quantization_config is not one of bitsandbytes")
    loads = "load_in_8bit" if precision is Precision.INT8 else "load_in_4bit"
    settings = {**_NOT_USED, loads: True}
    if precision is not Precision.INT8:
        settings["bnb_4bit_quant_type"] = precision.value
    for key, value in settings.items():
        if found.get(key, _NOT_USED.get(key)) != value:
            _refuse(f"{name}: quantization_config", f"{key} is {_shown(found.get(key))}, expected {value!r}")
    return {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": "float32", **settings}


def _rope_theta(name: str, config: Mapping[str, Any]) -> float:
    parameters = config.get("rope_parameters") or {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) != "default":
            _refuse(name, f"{key} is {_shown(rope)}, expected the type 'default'")
    return _positive(name, "rope_theta", config.get("rope_theta", parameters.get("rope_theta")))


def _check_sizes(manifest: Manifest, unit: Unit) -> None:
    """Refuse a shape whose weights do not fit the files: transformers would allocate them first."""
    shape = manifest.architecture
    layer = shape.hidden_size * (3 * shape.intermediate_size + shape.hidden_size)
    least = (shape.num_hidden_layers * layer + shape.vocab_size * shape.hidden_size) // 2
    size = sum(manifest.files[name].size for name in safetensors_files(manifest, unit))
    if size < least:
        _refuse(unit.folder, f"its weight files have {size:,} bytes; a model of its shape has {least:,}")


def _check_index(pair: Path, manifest: Manifest, unit: Unit) -> None:
    name = f"{unit.folder}/{INDEX}"
    if name not in manifest.files:
        return
    shards = _json_object(pair / name, name).get("weight_map")
    known = {path.rpartition("/")[2] for path in safetensors_files(manifest, unit)}
    if not isinstance(shards, Mapping) or not {*map(str, shards.values())} <= known:
        _refuse(name, "weight_map names files that the manifest does not list")


def _json_object(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(name, f"it cannot be read: {error}")
    if not isinstance(found, dict):
        _refuse(name, "it is not a JSON object")
    return found


def _expect(name: str, config: Mapping[str, Any], key: str, value: object) -> None:
    if config.get(key) != value or type(config.get(key)) is not type(value):
        _refuse(name, f"{key} is {_shown(config.get(key))}, expected {value!r}")


def _positive(name: str, key: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 < float(str(value)) < math.inf:
        _refuse(name, f"{key} is {_shown(value)}, expected a positive number")
    return float(str(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(name: str, fault: str) -> NoReturn:
    raise ModelInvalid(
        f"{name} is not as `stepscore export` writes it: {fault}",
        hint="export the pair from checkpoints you trust; do not run this one",
    )

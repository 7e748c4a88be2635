"""config.json of a bitsandbytes model: what an export writes passes; nothing else reaches transformers."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.hostile import rehash

from stepscore.artifact.pair import Pair
from stepscore.engine.pytorch.checked_config import checked_config
from stepscore.errors import ModelInvalid

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attention_factor": 1.1386,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
QUANTIZATION = {
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}


def written(pair: Path) -> dict[str, Any]:
    """What transformers 4.57 writes for a model of this shape."""
    shape = Pair.open(pair).manifest.architecture
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "dtype": "float32",
        "hidden_act": "silu",
        **{name: getattr(shape, name) for name in shape.__struct_fields__},
        "layer_types": ["full_attention"] * shape.num_hidden_layers,
        "model_type": "qwen2",
        "quantization_config": QUANTIZATION,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }


@pytest.fixture
def pair(torch_pair: Path) -> Path:
    config = json.dumps(written(torch_pair))
    for folder in ("policy", "reference"):
        (torch_pair / folder / "config.json").write_text(config)
        for weights in (torch_pair / folder).glob("*.safetensors"):
            weights.write_bytes(bytes(1_000_000))
    rehash(torch_pair)
    return torch_pair


def check(pair: Path, config: object) -> dict[str, Any]:
    (pair / "policy" / "config.json").write_text(json.dumps(config))
    manifest = Pair.open(_hashed(pair)).manifest
    return checked_config(pair, manifest, manifest.units[0])


def _hashed(pair: Path) -> Path:
    rehash(pair)
    return pair


def test_what_an_export_writes_passes_with_no_key_but_those_that_are_needed(pair: Path) -> None:
    config = written(pair)
    passed = check(pair, config | {"auto_map": {"AutoConfig": "evil.Evil"}, "num_labels": 10**9})
    assert {"auto_map", "num_labels", "architectures"}.isdisjoint(passed)
    assert passed["hidden_size"] == config["hidden_size"]
    assert passed["rope_theta"] == passed["rope_parameters"]["rope_theta"] == 10000.0
    assert passed["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


def test_the_rotary_base_of_transformers_5_is_the_same(pair: Path) -> None:
    config = written(pair)
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert check(pair, config)["rope_theta"] == 1e6


@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=lambda rope: rope["rope_type"])
def test_a_scaled_rotary_embedding_reaches_both_versions_of_transformers(
    pair: Path, rope: dict[str, Any]
) -> None:
    both = {"rope_theta": 5e5, "rope_scaling": rope, "rope_parameters": {**rope, "rope_theta": 5e5}}
    of_4 = {"rope_theta": 5e5, "rope_scaling": rope}
    of_5 = {"rope_theta": None, "rope_parameters": {**rope, "rope_theta": 5e5}}
    for stated in (both, of_4, of_5):
        passed = check(pair, written(pair) | stated)
        assert {key: passed[key] for key in both} == both


def test_a_model_that_reads_longer_texts_than_the_pair_passes_as_one_that_reads_as_long(pair: Path) -> None:
    config = written(pair)
    passed = check(pair, config | {"max_position_embeddings": config["max_position_embeddings"] + 1})
    assert passed["max_position_embeddings"] == config["max_position_embeddings"]


@pytest.mark.parametrize(
    ("rope", "change"),
    [
        *((LLAMA3, {key: ...}) for key in LLAMA3 if key != "rope_type"),
        *((YARN, {key: ...}) for key in YARN if key != "rope_type"),
        *((LLAMA3, {"factor": value}) for value in (0, -1.0, "8", True, 1e400, [8.0])),
        *((YARN, {"attention_factor": value}) for value in (0, -1.0, "1", None)),
        *((YARN, {"truncate": value}) for value in (0, "true", None)),
        *((YARN, {"original_max_position_embeddings": value}) for value in (0, 2**31, 1.5, True)),
        (LLAMA3, {"low_freq_factor": 4.0}),
        *((LLAMA3, {"rope_type": value}) for value in ("linear", "dynamic", "longrope", None, 3, [])),
        (LLAMA3, {"rope_theta": 1e6}),
    ],
    ids=str,
)
def test_a_number_that_transformers_would_derive_or_fail_on_is_refused(
    pair: Path, rope: dict[str, Any], change: dict[str, Any]
) -> None:
    changed = {key: value for key, value in (rope | change).items() if value is not ...}
    with pytest.raises(ModelInvalid, match=r"^policy/config.json"):
        check(pair, written(pair) | {"rope_scaling": changed})


def test_two_rotary_embeddings_are_refused(pair: Path) -> None:
    two = {"rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "factor": 4.0, "rope_theta": 10000.0}}
    with pytest.raises(ModelInvalid, match="rope_scaling and rope_parameters differ"):
        check(pair, written(pair) | two)
    with pytest.raises(ModelInvalid, match=r"rope_theta is 1.0, expected more than 1"):
        check(pair, written(pair) | {"rope_theta": 1.0, "rope_scaling": YARN})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_size", value) for value in (10**9, "x", 32, None, 64.0)),
        *(("num_hidden_layers", value) for value in (10**6, 1, True)),
        *((name, 3) for name in ("vocab_size", "intermediate_size", "num_attention_heads")),
        *((name, 0) for name in ("num_key_value_heads", "head_dim")),
        *(("max_position_embeddings", value) for value in (0, 16, 1e9, True, None)),
        *(("hidden_act", value) for value in ("gelu", "nope", None)),
        *(("model_type", value) for value in ("org/model", "../x", "", "a" * 41, 5, None)),
        *(("rms_norm_eps", value) for value in ("x", 0, -1.0, None, [])),
        *(("rope_theta", value) for value in ("x", 0, None)),
        *(("rope_scaling", value) for value in ("x", {"rope_type": "yarn"}, {"type": "linear"}, [1])),
        *(("layer_types", value) for value in (["sliding_attention"], ["\x1b[31m"])),
        ("use_sliding_window", True),
        *(("tie_word_embeddings", value) for value in (None, "false", 1)),
        *(("dtype", value) for value in ("float64", "nope", None, 5)),
        *(("quantization_config", value) for value in (None, "x", {}, {"quant_method": "gptq"})),
    ],
)
def test_any_other_value_is_refused_by_its_name(pair: Path, key: str, value: object) -> None:
    with pytest.raises(ModelInvalid, match=r"^policy/config.json.* is not as `stepscore export` writes it"):
        check(pair, written(pair) | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("load_in_4bit", False),
        ("load_in_8bit", True),
        ("bnb_4bit_quant_type", "fp4"),
        ("bnb_4bit_use_double_quant", True),
        ("bnb_4bit_quant_storage", "float32"),
        ("llm_int8_has_fp16_weight", True),
        ("llm_int8_skip_modules", ["model"]),
        ("quant_method", "awq"),
    ],
)
def test_another_way_to_store_weights_is_refused(pair: Path, key: str, value: object) -> None:
    with pytest.raises(ModelInvalid, match="quantization_config"):
        check(pair, written(pair) | {"quantization_config": QUANTIZATION | {key: value}})


def test_no_value_of_any_type_gives_anything_but_a_verdict(pair: Path) -> None:
    config = written(pair)
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8")),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rope_type", "a"]), inner)
        ),
        max_leaves=4,
    )

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from([*config, "rope_parameters", "torch_dtype", "head_dim"]), values)
    def holds(key: str, value: object) -> None:
        with contextlib.suppress(ModelInvalid):
            check(pair, config | {key: value})

    holds()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000], ids=len)
def test_what_is_no_json_object_is_refused(pair: Path, text: bytes) -> None:
    (pair / "policy" / "config.json").write_bytes(text)
    manifest = Pair.open(_hashed(pair)).manifest
    with pytest.raises(ModelInvalid, match=r"^policy/config.json is not"):
        checked_config(pair, manifest, manifest.units[0])


def test_a_config_that_became_a_fifo_is_not_waited_for(pair: Path) -> None:
    manifest = Pair.open(pair).manifest
    (pair / "policy" / "config.json").unlink()
    os.mkfifo(pair / "policy" / "config.json")
    with pytest.raises(ModelInvalid, match="it is not a regular file"):
        checked_config(pair, manifest, manifest.units[0])


def test_weights_that_are_too_small_for_the_shape_are_refused_before_they_are_allocated(pair: Path) -> None:
    config = written(pair)
    (pair / "policy" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelInvalid, match="weight files have 1 bytes"):
        check(pair, config)

"""A checkpoint that cannot be trusted is refused by the name of its fault."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.checkpoints import (
    TINY,
    config_json,
    edit_json,
    edit_tensors,
    tied,
    write_checkpoint,
    write_json,
)

from stepscore.errors import (
    CheckpointCorrupt,
    CheckpointUnsafe,
    ExportError,
    StepscoreError,
    UnsupportedArchitecture,
)
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import tensor_shapes
from stepscore_export.families.supported import read_config

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
SHARDS = [f"model-{index:05d}-of-00003.safetensors" for index in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", shards=3)


def refused(folder: Path, error: type[StepscoreError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Checkpoint.open(folder)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "m.Model"}}, CheckpointUnsafe, "auto_map"),
        ({"model_type": "gpt2"}, UnsupportedArchitecture, "'gpt2', supported: 'qwen2', 'qwen3', 'llama'"),
        ({"model_type": ...}, UnsupportedArchitecture, "model_type is None"),
        (
            {"architectures": ["Qwen2ForSequenceClassification"]},
            UnsupportedArchitecture,
            "not a causal language model",
        ),
        ({"hidden_act": "gelu"}, UnsupportedArchitecture, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedArchitecture, "already quantized"),
        (
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            UnsupportedArchitecture,
            "9",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            UnsupportedArchitecture,
            "sliding_attention",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            UnsupportedArchitecture,
            "rope_scaling is .*dynamic.*'default', 'llama3', 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2}},
            UnsupportedArchitecture,
            "rope_parameters",
        ),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedArchitecture, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 5e5}}, CheckpointCorrupt, "rope_theta is 10000.0, .* 500000.0"),
        ({"attention_bias": False}, UnsupportedArchitecture, "attention_bias"),
        ({"use_mrope": True}, UnsupportedArchitecture, "use_mrope"),
        ({"hidden_size": ...}, CheckpointCorrupt, "hidden_size is None"),
        ({"num_hidden_layers": 0}, CheckpointCorrupt, "num_hidden_layers is 0"),
        ({"vocab_size": "320"}, CheckpointCorrupt, "vocab_size is '320'"),
        ({"max_position_embeddings": 10**9}, CheckpointCorrupt, "max_position_embeddings is 1000000000"),
        ({"num_attention_heads": True}, CheckpointCorrupt, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, CheckpointCorrupt, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, CheckpointCorrupt, "head_dim is 15"),
        ({"rms_norm_eps": -1e-6}, CheckpointCorrupt, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, CheckpointCorrupt, "tie_word_embeddings is 'yes'"),
        ({"intermediate_size": 95}, CheckpointCorrupt, r"gate_proj.* has shape \[96, 64\].* \[95, 64\]"),
        (
            {"num_hidden_layers": 3},
            CheckpointCorrupt,
            r"model\.layers\.2\.input_layernorm\.weight is missing",
        ),
        ({"num_hidden_layers": 1}, UnsupportedArchitecture, r"12 tensors .* model\.layers\.1\."),
    ],
)
def test_a_configuration_is_refused_by_its_fault(
    folder: Path, changes: dict[str, Any], error: type[StepscoreError], message: str
) -> None:
    edit_json(folder / "config.json", **changes)
    refused(folder, error, message)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "list", "utf16", "deep"]
)
def test_unreadable_json_is_refused_by_its_name(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder, CheckpointCorrupt, name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_oversized_json_is_refused_unread(folder: Path, name: str) -> None:
    os.truncate(folder / name, 65 << 20)
    refused(folder, CheckpointCorrupt, f"{name} has 68157440 bytes")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, CheckpointCorrupt, f"{name} is missing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_only_regular_files_are_opened(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    refused(folder, CheckpointCorrupt, f"{name} is not a regular file")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, CheckpointUnsafe, f"{name} is a link that leaves")


def test_a_link_to_itself_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, CheckpointCorrupt, "config.json cannot be read")


@pytest.mark.parametrize("size", [0, 7, 100, -1], ids=["empty", "no length", "no header", "one byte less"])
def test_a_truncated_file_is_named(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size % path.stat().st_size)
    refused(folder, CheckpointCorrupt, r"model\.safetensors is not a complete safetensors file")


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    os.truncate(sharded / SHARDS[1], 1000)
    refused(sharded, CheckpointCorrupt, f"{SHARDS[1]} is not a complete")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[2]).unlink()
    refused(sharded, CheckpointCorrupt, f"{SHARDS[2]} is missing")


def test_a_file_that_is_cut_while_it_is_read_is_named(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 4000)
        with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors ends inside lm_head\.weight"):
            checkpoint.rows(HEAD)


def test_an_untied_checkpoint_without_head_is_refused(folder: Path) -> None:
    edit_tensors(folder / "model.safetensors", lambda all_: all_.pop(HEAD))
    refused(folder, CheckpointCorrupt, "lm_head.weight is missing")


def test_a_checkpoint_saved_from_the_bare_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, prefix="")
    edit_tensors(folder / "model.safetensors", lambda all_: all_.pop(HEAD))
    refused(folder, CheckpointCorrupt, "lm_head.weight is missing .* saved from Qwen2Model")


@pytest.mark.parametrize("dtype", [np.int8, np.float64, ml_dtypes.float8_e4m3fn])
def test_another_dtype_is_refused(folder: Path, dtype: Any) -> None:
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update({NORM: all_[NORM].astype(dtype)}))
    refused(folder, CheckpointCorrupt, f"{NORM} is stored as")


def test_another_shape_is_refused(folder: Path) -> None:
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update({HEAD: all_[HEAD].T.copy()}))
    refused(folder, CheckpointCorrupt, r"lm_head.weight has shape \[64, 320\]")


@pytest.mark.parametrize(
    "name", ["score.weight", "model.layers.0.self_attn.q_norm.weight", "a.lora_A.weight"]
)
def test_an_unknown_tensor_is_refused(folder: Path, name: str) -> None:
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update({name: np.ones(2, np.float32)}))
    refused(folder, UnsupportedArchitecture, name)


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "..",
    ],
)
def test_an_index_may_only_name_files_of_the_folder(sharded: Path, file: str) -> None:
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map=weight_map | {HEAD: file})
    refused(sharded, CheckpointUnsafe, r"inside the checkpoint|only .safetensors files")


def test_an_index_may_not_name_a_pickle(sharded: Path) -> None:
    edit_json(sharded / INDEX, weight_map={HEAD: "pytorch_model.bin"})
    refused(sharded, CheckpointUnsafe, "never pickles")


@pytest.mark.parametrize("weight_map", [None, [], {"lm_head.weight": 1}])
def test_an_index_needs_a_map_from_names_to_files(sharded: Path, weight_map: Any) -> None:
    edit_json(sharded / INDEX, weight_map=weight_map)
    refused(sharded, CheckpointCorrupt, "weight_map")


def test_a_tensor_that_is_not_where_the_index_says_is_named(sharded: Path) -> None:
    edit_tensors(sharded / SHARDS[2], lambda all_: all_.pop(HEAD))
    refused(sharded, CheckpointCorrupt, f"{HEAD} is not in {SHARDS[2]}")


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    edit_tensors(sharded / SHARDS[2], lambda all_: all_.update({EMBEDDING: np.ones((320, 64), np.float32)}))
    refused(sharded, CheckpointCorrupt, f"{EMBEDDING} is in both {SHARDS[0]} and {SHARDS[2]}")


def test_a_tensor_that_the_index_leaves_out_is_named(sharded: Path) -> None:
    edit_tensors(sharded / SHARDS[0], lambda all_: all_.update(extra=np.ones(2, np.float32)))
    refused(sharded, CheckpointCorrupt, f"extra is in {SHARDS[0]}, but")


@pytest.mark.parametrize(
    ("left", "error", "message"),
    [
        ("pytorch_model.bin", CheckpointUnsafe, "all weights are pickles"),
        ("adapter_config.json", UnsupportedArchitecture, "adapter"),
        (SHARDS[0], CheckpointCorrupt, "neither"),
        ("readme.txt", CheckpointCorrupt, "no weights"),
    ],
)
def test_a_folder_without_weights_says_what_it_has_instead(
    folder: Path, left: str, error: type[StepscoreError], message: str
) -> None:
    (folder / "model.safetensors").rename(folder / left)
    refused(folder, error, message)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, replace(TINY, vocab_size=275))
    refused(folder, CheckpointCorrupt, "token id 275, but vocab_size is 275")


def test_added_tokens_that_the_tokenizer_does_not_have_are_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"276": {"content": "<|new|>"}})
    refused(folder, CheckpointCorrupt, "token 276")


def test_code_named_by_the_tokenizer_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.Tokenizer", None]})
    refused(folder, CheckpointUnsafe, "tokenizer_config.json has `auto_map`")


# What is refused when it is read


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float, dtype: Any) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[HEAD] = tensors[HEAD].astype(dtype)
        tensors[HEAD][200, 3] = value

    edit_tensors(folder / "model.safetensors", damage)
    with Checkpoint.open(folder) as checkpoint:
        assert np.isfinite(checkpoint.rows(HEAD, 0, 200)).all()
        with pytest.raises(CheckpointCorrupt, match=r"lm_head.weight holds NaN or infinite .* 192 to 255"):
            checkpoint.rows(HEAD, 192, 256)


def test_a_tied_checkpoint_with_another_head_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tied())
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update({HEAD: all_[EMBEDDING] + 1}))
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(CheckpointCorrupt, match=f"{HEAD} differs from {EMBEDDING}"),
    ):
        checkpoint.rows(EMBEDDING, 0, 8)


# Whatever a stranger writes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from([*config_json(TINY), *config_json(TINY, layout=5), "rope_scaling"]), JSON)
)
def test_any_configuration_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        _, config = read_config(config_json(TINY) | changes)
    except ExportError:
        return
    assert len(tensor_shapes(config)) == 12 * config.num_hidden_layers + 3 - config.tie_word_embeddings


TOKENIZER_KEYS = (
    "added_tokens_decoder",
    "chat_template",
    "eos_token",
    "additional_special_tokens",
    "auto_map",
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(
        st.sampled_from([*TOKENIZER_KEYS, "extra_special_tokens", "tokenizer_class"]), JSON
    )
)
def test_any_tokenizer_configuration_is_read_or_refused(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / "tokenizer_config.json", config)
    with suppress(ExportError), Checkpoint.open(folder) as checkpoint:
        checkpoint.chat_template()

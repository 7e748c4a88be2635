"""A checkpoint in a trainer's wrapper is read where that is plain; else the error says what to run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from testing.checkpoints import TINY, edit_json, edit_tensors, tied, weights, write_checkpoint

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe, StepscoreError, UnsupportedArchitecture
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.tensor_names import bare_name
from stepscore_export.families.base import EMBEDDING, HEAD, DecoderConfig, tensor_shapes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WRAPPERS = (
    *(
        "module.",
        "_orig_mod.",
        "base_model.model.",
        "language_model.",
        "pretrained_model.",
        "_fsdp_wrapped_module.",
    ),
    *("_orig_mod.module.", "module._orig_mod.", "base_model.model.model."),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def rename(folder: Path, change: Any) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({change(name): value for name, value in tensors.items()}, folder / SINGLE)


def assert_read(folder: Path, shape: DecoderConfig = TINY) -> None:
    with Checkpoint.open(folder) as checkpoint:
        for name, values in weights(shape).items():
            np.testing.assert_array_equal(checkpoint.rows(name), values, err_msg=name)


def refused(folder: Path, error: type[StepscoreError], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Checkpoint.open(folder)
    assert type(caught.value) is error
    assert hint in str(caught.value.hint)


# Names


@pytest.mark.parametrize("shape", [TINY, tied()], ids=["untied", "tied"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_in_a_wrapper_are_read(tmp_path: Path, wrapper: str, shape: DecoderConfig) -> None:
    folder = write_checkpoint(tmp_path, shape)
    rename(folder, lambda name: wrapper + name)
    assert_read(folder, shape)


def test_wrappers_inside_the_layers_are_read(folder: Path) -> None:
    rename(folder, lambda name: name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn._orig_mod."))
    assert_read(folder)


def test_doubled_prefix_is_read(folder: Path) -> None:
    rename(folder, lambda name: name.replace("model.", "model.model.", 1))
    assert_read(folder)


@given(st.sampled_from(sorted(tensor_shapes(TINY))), st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4))
def test_bare_name_does_not_depend_on_wrappers(name: str, wrappers: list[str]) -> None:
    assert bare_name("".join(wrappers) + name) == name.removeprefix("model.")


def test_wrapped_names_are_refused_where_transformers_reads(folder: Path) -> None:
    rename(folder, lambda name: "module." + name)
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(UnsupportedArchitecture, match=r"wrapper \(module\.model\.embed_tokens\.weight\)"),
    ):
        checkpoint.require_plain("parity")


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_that_transformers_reads_are_plain(tmp_path: Path, prefix: str) -> None:
    with Checkpoint.open(write_checkpoint(tmp_path, prefix=prefix)) as checkpoint:
        checkpoint.require_plain("parity")


def test_value_head_is_left_out(folder: Path) -> None:
    head = {"v_head.summary.weight": np.ones((1, 64), "f4"), "v_head.summary.bias": np.ones(1, "f4")}
    edit_tensors(folder / SINGLE, lambda all_: all_.update(head))
    assert_read(folder)
    rename(folder, lambda name: name if name.startswith("v_head") else "pretrained_model." + name)
    assert_read(folder)


def test_two_models_in_one_checkpoint_are_refused(folder: Path) -> None:
    edit_tensors(folder / SINGLE, lambda all_: all_.update({f"module.{HEAD}": all_[HEAD] + 1}))
    refused(folder, UnsupportedArchitecture, f"{HEAD}.* same tensor", "more than one model")


def test_names_of_an_unknown_wrapper_are_named(folder: Path) -> None:
    rename(folder, lambda name: "actor." + name)
    refused(folder, CheckpointCorrupt, r"missing .* it holds 27, such as actor\.lm_head", "save_pretrained")


def test_unmerged_adapter_among_the_weights_is_named(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    edit_tensors(folder / SINGLE, lambda all_: all_.update({name: np.ones((8, 64), "f4")}))
    refused(folder, UnsupportedArchitecture, "lora_A", "merge_and_unload")


def test_more_layers_than_the_configuration_are_named(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    refused(folder, UnsupportedArchitecture, "config.json says num_hidden_layers 1", "config.json")


@pytest.mark.parametrize(
    "architecture", ["FSDPQwen2ForCausalLM", "PeftModelForCausalLM", "AutoModelForCausalLMWithValueHead"]
)
def test_class_of_a_wrapper_is_read(folder: Path, architecture: str) -> None:
    edit_json(folder / "config.json", architectures=[architecture])
    assert_read(folder)


# Files


def test_empty_placeholders_of_zero3_are_named(folder: Path) -> None:
    edit_tensors(folder / SINGLE, lambda all_: all_.update({name: np.zeros(0, "f4") for name in all_}))
    refused(folder, CheckpointCorrupt, r"embed_tokens\.weight has shape \[0\]", "zero_to_fp32.py")


def test_stub_beside_shards_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    save_file({"model.norm.weight": np.ones(64, "f4")}, folder / SINGLE)
    refused(
        folder, CheckpointCorrupt, f"{SINGLE} holds 1 tensors .* names 27 in other files", f"remove {SINGLE}"
    )


def test_single_file_wins_over_shards_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path / "a", shards=2, seed=5)
    shutil.copy(write_checkpoint(tmp_path / "b") / SINGLE, folder / SINGLE)
    assert_read(folder)
    assert f"{SINGLE} is read, as in transformers, and {INDEX} is not" in caplog.text


OTHER_KINDS: dict[str, tuple[type[StepscoreError], str, str]] = {
    "model_world_size_8_rank_0.pt": (CheckpointUnsafe, "verl", "python -m verl.model_merger merge"),
    "zero_to_fp32.py": (UnsupportedArchitecture, "DeepSpeed", "zero_to_fp32.py"),
    "__0_0.distcp": (UnsupportedArchitecture, "distributed checkpoint", "accelerate merge-weights"),
    "model.gguf": (UnsupportedArchitecture, "GGUF", "safetensors"),
    "tf_model.h5": (UnsupportedArchitecture, "not read", "save_pretrained"),
    "pytorch_model.bin": (CheckpointUnsafe, "pickles", "safe_serialization"),
    "other.safetensors": (CheckpointCorrupt, "found other", "model.safetensors"),
}


@pytest.mark.parametrize("left", OTHER_KINDS)
@pytest.mark.parametrize("config", [True, False], ids=["config", "no config"])
def test_folder_of_another_kind_says_what_to_run(folder: Path, config: bool, left: str) -> None:
    (folder / SINGLE).rename(folder / left)
    if not config:
        (folder / "config.json").unlink()
    refused(folder, *OTHER_KINDS[left])


def test_folder_above_a_checkpoint_names_it(folder: Path) -> None:
    refused(folder.parent, CheckpointCorrupt, f"config.json is missing from {folder.parent}", str(folder))


# Configuration


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "default", "factor": 1.0}},
        {"rope_scaling": {"type": "default", "original_max_position_embeddings": 4096}},
        {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
        {"partial_rotary_factor": 1.0},
        {"attention_bias": None},
        {"use_sliding_window": True, "sliding_window": 512},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
        {
            "use_sliding_window": True,
            "sliding_window": 512,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ],
)
def test_configuration_that_changes_nothing_is_read(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", **changes)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config == TINY


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"use_sliding_window": "false"},
            CheckpointCorrupt,
            "use_sliding_window is 'false', expected true or",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 511, "max_window_layers": 0},
            UnsupportedArchitecture,
            "511",
        ),
        (
            {"use_sliding_window": True, "max_window_layers": "2"},
            CheckpointCorrupt,
            "max_window_layers is '2'",
        ),
        (
            {"use_sliding_window": True, "max_window_layers": -(10**12), "sliding_window": 9},
            UnsupportedArchitecture,
            "9",
        ),
        ({"partial_rotary_factor": 0.5}, UnsupportedArchitecture, "partial_rotary_factor is 0.5"),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [2]}},
            UnsupportedArchitecture,
            "mrope_section is",
        ),
        ({"rope_scaling": {"factor": 2.0}}, UnsupportedArchitecture, "rope_scaling is"),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedArchitecture, "nested by kind of layer"),
        ({"compression_config": {"quant_method": "x"}}, UnsupportedArchitecture, "compression_config"),
        ({"attention_bias": "no"}, CheckpointCorrupt, "attention_bias is 'no'"),
    ],
)
def test_configuration_that_changes_numbers_is_refused_by_its_key(
    folder: Path, changes: dict[str, Any], error: type[StepscoreError], message: str
) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(error, match=message):
        Checkpoint.open(folder)


def test_byte_order_mark_is_no_part_of_json(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_read(folder)


def test_resized_embedding_says_where_its_size_is_set(folder: Path) -> None:
    edit_tensors(folder / SINGLE, lambda all_: all_.update({EMBEDDING: all_[EMBEDDING][:300].copy()}))
    refused(folder, CheckpointCorrupt, r"\[300, 64\], expected \[320, 64\]", "config.json")

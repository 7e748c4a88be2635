"""A LoRA adapter beside the weights that it belongs to is merged exactly, or refused by its name."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from testing.checkpoints import TINY, edit_json, tied, weights, write_checkpoint, write_json

from stepscore.cli.main import main
from stepscore.errors import (
    CheckpointCorrupt,
    CheckpointUnsafe,
    ExportError,
    StepscoreError,
    UnsupportedArchitecture,
)
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.lora import CONFIG, WEIGHTS
from stepscore_export.families.base import EMBEDDING, HEAD, tensor_shapes

PREFIX = "base_model.model."
QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
RANK, ALPHA = 3, 7
# As peft 0.17 writes it.
PLAIN: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "org/base",
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": ALPHA,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": RANK,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "down_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def factors(*matrices: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random, shapes = np.random.default_rng(7), tensor_shapes(TINY)
    drawn = {}
    for matrix in matrices:
        rows, columns = shapes[f"{matrix}.weight"]
        drawn[f"{PREFIX}{matrix}.lora_A.weight"] = random.standard_normal((RANK, columns)).astype(dtype)
        drawn[f"{PREFIX}{matrix}.lora_B.weight"] = random.standard_normal((rows, RANK)).astype(dtype)
    return drawn


def add_adapter(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    write_json(folder / CONFIG, {key: value for key, value in (PLAIN | config).items() if value is not ...})
    save_file(factors(QUERY, DOWN) if tensors is None else tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def refused(folder: Path, error: type[StepscoreError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Checkpoint.open(folder)
    assert caught.value.hint


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / math.sqrt(RANK))])
def test_adapter_is_merged_exactly(folder: Path, dtype: Any, rslora: bool, scale: float) -> None:
    tensors = factors(QUERY, DOWN, HEAD.removesuffix(".weight"), dtype=dtype)
    add_adapter(folder, tensors, use_rslora=rslora)
    with Checkpoint.open(folder) as checkpoint:
        for name, weight in weights(TINY).items():
            expected = weight.astype(np.float64)
            a = tensors.get(PREFIX + name.replace(".weight", ".lora_A.weight"))
            b = tensors.get(PREFIX + name.replace(".weight", ".lora_B.weight"))
            if a is not None and b is not None:
                expected = expected + scale * (b.astype(np.float64) @ a.astype(np.float64))
                assert checkpoint.dtype(name) == np.float32
            np.testing.assert_array_equal(checkpoint.rows(name), expected.astype(np.float32), err_msg=name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(start=st.integers(-99, 99), stop=st.none() | st.integers(-99, 99))
def test_merged_rows_are_a_slice(folder: Path, start: int, stop: int | None) -> None:
    with Checkpoint.open(add_adapter(folder)) as checkpoint:
        whole = checkpoint.rows(f"{QUERY}.weight")
        np.testing.assert_array_equal(checkpoint.rows(f"{QUERY}.weight", start, stop), whole[start:stop])


def test_adapter_without_effect_changes_no_bit(folder: Path) -> None:
    tensors = {
        name: np.zeros_like(value) if "_B" in name else value for name, value in factors(QUERY).items()
    }
    with Checkpoint.open(add_adapter(folder, tensors)) as checkpoint:
        np.testing.assert_array_equal(checkpoint.rows(f"{QUERY}.weight"), weights(TINY)[f"{QUERY}.weight"])


def test_merge_is_told_with_rank_and_alpha(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Checkpoint.open(add_adapter(folder), "policy").close()
    (message,) = caplog.messages
    assert message.startswith(f"policy (--policy {folder}): {WEIGHTS} is merged")
    assert "(rank 3, alpha 7, 2 matrices)" in message


def test_sizes_count_the_adapter(folder: Path) -> None:
    total = sum(array.size for array in weights(TINY).values())
    with Checkpoint.open(add_adapter(folder)) as checkpoint:
        assert checkpoint.parameters() == total
        assert checkpoint.num_bytes() == 4 * (
            total + sum(array.size for array in factors(QUERY, DOWN).values())
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "ADALORA"},
        {"peft_type": ...},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"fan_in_fan_out": True},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"init_lora_weights": "pissa_niter_16"},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [1]},
        {"a_key_of_tomorrow": 1},
    ],
)
def test_variant_of_lora_is_refused_by_its_key(folder: Path, changes: dict[str, Any]) -> None:
    refused(add_adapter(folder, **changes), UnsupportedArchitecture, f"{CONFIG}: {next(iter(changes))} is ")


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [..., None, 0, -1, "8", True, [8], 10**400])
def test_rank_and_alpha_must_be_given(folder: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointCorrupt, match=f"{CONFIG}: {key} is "):
        Checkpoint.open(add_adapter(folder, **{key: value}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda all_: all_.popitem(), CheckpointCorrupt, r"has no .*lora_[AB]\.weight, but its other factor"),
        (lambda all_: all_.clear(), CheckpointCorrupt, "holds no tensors"),
        (
            lambda all_: all_.update({f"{PREFIX}{EMBEDDING[:-7]}.lora_embedding_A": np.ones((3, 320), "f4")}),
            UnsupportedArchitecture,
            "lora_embedding_A, which is not the one factor",
        ),
        (
            lambda all_: all_.update(
                {f"{PREFIX}model.layers.9.mlp.up_proj.lora_A.weight": np.ones((3, 64), "f4")}
            ),
            UnsupportedArchitecture,
            r"layers\.9",
        ),
        (
            lambda all_: all_.update({f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(64, "f4")}),
            UnsupportedArchitecture,
            "lora_magnitude_vector",
        ),
        (
            lambda all_: all_.update({f"{PREFIX}{HEAD}": np.ones((320, 64), "f4")}),
            UnsupportedArchitecture,
            HEAD,
        ),
        (
            lambda all_: all_.update({f"{PREFIX}{QUERY}.lora_A.weight": np.ones((4, 64), "f4")}),
            CheckpointCorrupt,
            rf"lora_A\.weight has shape \[4, 64\], expected \[3, 64\] by {CONFIG}",
        ),
    ],
    ids=["one factor", "none", "embedding", "layer", "dora", "saved head", "rank"],
)
def test_tensors_that_are_no_factors_are_refused_by_name(
    folder: Path, change: Any, error: type[StepscoreError], message: str
) -> None:
    tensors = factors(QUERY, DOWN)
    change(tensors)
    refused(add_adapter(folder, tensors), error, message)


def test_factor_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    folder = add_adapter(write_checkpoint(tmp_path, tied()), factors(HEAD.removesuffix(".weight")))
    refused(folder, UnsupportedArchitecture, "lm_head")


def test_factor_that_is_not_finite_is_named(folder: Path) -> None:
    tensors = factors(QUERY)
    tensors[f"{PREFIX}{QUERY}.lora_A.weight"][1, 1] = np.nan
    with (
        Checkpoint.open(add_adapter(folder, tensors)) as checkpoint,
        pytest.raises(CheckpointCorrupt, match=r"q_proj\.lora_A\.weight holds NaN"),
    ):
        checkpoint.rows(f"{QUERY}.weight")


def test_merge_that_overflows_is_named(folder: Path) -> None:
    tensors = {name: np.full_like(value, 1e30) for name, value in factors(QUERY).items()}
    with (
        Checkpoint.open(add_adapter(folder, tensors)) as checkpoint,
        pytest.raises(CheckpointCorrupt, match=r"q_proj\.weight is not finite once"),
    ):
        checkpoint.rows(f"{QUERY}.weight")


def test_half_an_adapter_is_refused(folder: Path) -> None:
    add_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(folder, CheckpointUnsafe, "pickle")
    (folder / "adapter_model.bin").unlink()
    refused(folder, CheckpointCorrupt, f"not {WEIGHTS}")
    add_adapter(folder)
    (folder / CONFIG).unlink()
    refused(folder, CheckpointCorrupt, f"not {CONFIG}")


def test_adapter_without_its_model_is_refused(folder: Path) -> None:
    add_adapter(folder)
    (folder / "model.safetensors").unlink()
    refused(folder, UnsupportedArchitecture, "holds an adapter")
    (folder / "config.json").unlink()
    refused(folder, UnsupportedArchitecture, "holds an adapter")


@pytest.mark.slow
def test_pair_of_an_adapter_equals_the_pair_of_the_merged_model(folder: Path, tmp_path: Path) -> None:
    reference = write_checkpoint(tmp_path / "reference")
    merged = write_checkpoint(tmp_path / "merged")
    add_adapter(folder)
    with Checkpoint.open(folder) as checkpoint:
        save_file({name: checkpoint.rows(name) for name in weights(TINY)}, merged / "model.safetensors")
    for name, policy in (("a", folder), ("b", merged)):
        command = ["export", "--policy", str(policy), "--reference", str(reference)]
        options = ["--output", str(tmp_path / name), "--precision", "int8", "--quiet"]
        done = CliRunner().invoke(main, [*command, *options])
        assert done.exit_code == 0, done.stderr
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab"]
    assert manifests[0]["files"] == manifests[1]["files"]


@pytest.mark.parametrize("command", ["bitsandbytes", "parity"])
def test_what_transformers_would_read_otherwise_is_refused(folder: Path, command: str) -> None:
    with (
        Checkpoint.open(add_adapter(folder), "policy") as checkpoint,
        pytest.raises(UnsupportedArchitecture, match=rf"^policy .* LoRA adapter .*; {command} works with"),
    ):
        checkpoint.require_plain(command)


JSON = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just([1])
    | st.just({"a": 1})
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(changes=st.dictionaries(st.sampled_from([*PLAIN, "other"]), JSON))
def test_any_adapter_configuration_is_merged_or_refused(folder: Path, changes: dict[str, Any]) -> None:
    if not (folder / WEIGHTS).exists():
        add_adapter(folder)
    write_json(folder / CONFIG, PLAIN | changes)
    with suppress(ExportError), Checkpoint.open(folder) as checkpoint:
        assert np.isfinite(checkpoint.rows(f"{QUERY}.weight")).all()


def test_an_edited_key_that_is_not_set_is_plain(folder: Path) -> None:
    edit_json(add_adapter(folder) / CONFIG, a_key_of_tomorrow=None, another=False, third={})
    Checkpoint.open(folder).close()

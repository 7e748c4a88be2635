"""Errors say which of the two checkpoints they concern: when one is opened, and when its rows are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from testing.checkpoints import edit_json, edit_tensors, write_checkpoint, write_tokenizer

from stepscore.artifact.manifest import ModelName
from stepscore.cli.main import main
from stepscore.enums import Coding, Precision, Target
from stepscore.errors import CheckpointCorrupt, NotFound, StepscoreError, UnsupportedArchitecture
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import EMBEDDING, FINAL_NORM, HEAD
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.reference.layerwise_fp32 import fp32_logprobs

ROLES: tuple[ModelName, ModelName] = ("policy", "reference")
BIAS = "model.layers.1.self_attn.q_proj.bias"


@pytest.fixture
def folders(tmp_path: Path) -> dict[ModelName, Path]:
    return {
        "policy": write_checkpoint(tmp_path / "a", seed=1, perturb=0.01),
        "reference": write_checkpoint(tmp_path / "b", seed=1),
    }


def named(role: ModelName) -> str:
    """Match how an error begins: the role, its option and its folder."""
    return rf"{role} \(--{role} /[^)]+\): "


def damage(folder: Path, name: str, value: float) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].reshape(-1)[7] = value

    edit_tensors(folder / "model.safetensors", change)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="gpt2")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_head(folder: Path) -> None:
    edit_tensors(folder / "model.safetensors", lambda all_: all_.pop(HEAD))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fault", [no_weights, other_architecture, no_tokenizer, no_head])
def test_checkpoint_that_cannot_be_opened_is_named_by_its_role(
    folders: dict[ModelName, Path], tmp_path: Path, role: ModelName, fault: Callable[[Path], None]
) -> None:
    fault(folders[role])
    with pytest.raises(StepscoreError, match=f"^{named(role)}") as rejected:
        export_pair(folders["policy"], folders["reference"], tmp_path / "pair")
    assert rejected.value.message == str(rejected.value)


@pytest.mark.parametrize("role", ROLES)
def test_missing_folder_is_named_by_its_role(
    folders: dict[ModelName, Path], tmp_path: Path, role: ModelName
) -> None:
    models = folders | {role: tmp_path / "nowhere"}
    with pytest.raises(NotFound, match=f"^{named(role)}no checkpoint folder at "):
        export_pair(models["policy"], models["reference"], tmp_path / "pair")


def test_checkpoint_alone_has_no_role(folders: dict[ModelName, Path]) -> None:
    no_weights(folders["policy"])
    with pytest.raises(CheckpointCorrupt, match=r"^no weights: "):
        Checkpoint.open(folders["policy"])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [EMBEDDING, HEAD, BIAS])
def test_row_that_is_not_finite_is_named_by_the_role_of_its_checkpoint(
    folders: dict[ModelName, Path], tmp_path: Path, role: ModelName, name: str
) -> None:
    damage(folders[role], name, np.nan)
    with pytest.raises(CheckpointCorrupt, match=f"^{named(role)}{name} holds NaN or infinite values"):
        export_pair(folders["policy"], folders["reference"], tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


@pytest.mark.parametrize("role", ROLES)
def test_file_truncated_after_it_was_opened_is_named_by_its_role(
    folders: dict[ModelName, Path], role: ModelName
) -> None:
    with Checkpoint.open(folders[role], role) as checkpoint:
        os.truncate(folders[role] / "model.safetensors", 4000)
        with pytest.raises(CheckpointCorrupt, match=rf"^{named(role)}model\.safetensors ends inside lm_head"):
            checkpoint.rows(HEAD)


@pytest.mark.parametrize("role", ROLES)
def test_value_beyond_fp16_is_named_by_the_role_of_its_checkpoint(
    folders: dict[ModelName, Path], tmp_path: Path, role: ModelName
) -> None:
    damage(folders[role], BIAS, 1e6)
    options = ExportOptions(Precision.FP16, Target.CUDA, coding=Coding.INDEPENDENT)
    with pytest.raises(CheckpointCorrupt, match=rf"^{named(role)}layers\.1\.qkv_bias holds 1e\+06"):
        export_pair(folders["policy"], folders["reference"], tmp_path / "pair", options)


@pytest.mark.parametrize("role", ROLES)
def test_log_probs_that_are_not_finite_are_named_by_the_role_of_their_checkpoint(
    folders: dict[ModelName, Path], tmp_path: Path, role: ModelName
) -> None:
    edit_tensors(folders[role] / "model.safetensors", lambda all_: all_[FINAL_NORM].fill(3e38))
    sequences = [np.arange(9)]
    with (
        Checkpoint.open(folders["policy"], "policy") as policy,
        Checkpoint.open(folders["reference"], "reference") as reference,
        pytest.raises(CheckpointCorrupt, match=f"^{named(role)}.* gives log-probs that are NaN or infinite"),
    ):
        fp32_logprobs(policy, reference, sequences)


def test_chat_template_is_the_policys(folders: dict[ModelName, Path], tmp_path: Path) -> None:
    write_tokenizer(folders["policy"], chat_template="{{ nothing")
    with pytest.raises(UnsupportedArchitecture, match=named("policy") + r"the chat template fails"):
        export_pair(folders["policy"], folders["reference"], tmp_path / "pair")


def test_command_prints_the_role(folders: dict[ModelName, Path], tmp_path: Path) -> None:
    no_weights(folders["reference"])
    models = ["--policy", str(folders["policy"]), "--reference", str(folders["reference"])]
    done = CliRunner().invoke(main, ["export", *models, "--output", str(tmp_path / "pair"), "--dry-run"])
    assert done.exit_code == 3
    assert done.stderr.startswith(f"error: reference (--reference {folders['reference']}): no weights: ")

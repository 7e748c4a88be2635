"""What `stepscore parity` skips and names, what it rejects, and what it then leaves behind."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from testing.checkpoints import write_checkpoint
from testing.parity_command import POLICY, REFERENCE, lines, parity, problem
from testing.uninstalled import uninstall

from stepscore.errors import NonFinite
from stepscore_export.parity import pytorch
from stepscore_export.parity import run as parity_command
from stepscore_export.parity.pytorch import Run

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


# Lines that cannot be compared


def test_bad_lines_are_named_and_counted_and_the_rest_is_compared(int8: Path, tmp_path: Path) -> None:
    data = lines(tmp_path, problem(0), "{", '{"problem": "p", "steps": []}', problem(1))
    done = parity(int8, "--json", data=data, limit=4)
    assert done.exit_code == 1
    assert "line 2 is skipped: invalid_json: " in done.stderr
    assert "line 3 is skipped: no_steps: " in done.stderr
    found = json.loads(done.stdout)
    assert found["left_out"] == {"invalid_json": 1, "no_steps": 1}
    assert (found["num_lines"], found["fidelity"]["num_sequences"]) == (4, 2)
    origin = found["stepscore"]
    assert (origin["pair"], origin["beta"]) == (found["pair"]["fingerprint"], found["beta"])
    assert (origin["convention"], origin["version"]) == (found["convention"], found["pair"]["stepscore"])


def test_first_ten_bad_lines_are_named(int8: Path, tmp_path: Path) -> None:
    done = parity(int8, data=lines(tmp_path, problem(0), *["{"] * 30), limit=100)
    assert done.stderr.count("is skipped") == 10
    assert "30 lines are skipped in all (invalid_json 30)" in done.stderr


def test_data_without_one_good_line_is_an_error(int8: Path, tmp_path: Path) -> None:
    done = parity(int8, data=lines(tmp_path, '{"a": 1}', "[]"))
    assert (done.exit_code, done.stdout) == (3, "")
    assert "none of the first 2 lines is a record" in done.stderr
    assert "\nhint: " in done.stderr


def test_empty_data_is_an_error(int8: Path, tmp_path: Path) -> None:
    done = parity(int8, data=lines(tmp_path))
    assert (done.exit_code, done.stdout) == (3, "")
    assert "is empty" in done.stderr


def no_number(monkeypatch: pytest.MonkeyPatch, *positions: int) -> None:
    """PyTorch gives NaN for the solutions at these positions."""
    score = pytorch.score

    def spoiled(*given: Any, **options: Any) -> Run:
        run = score(*given, **options)
        for position in positions:
            run.logprobs[position][0] = np.nan
        return run

    monkeypatch.setattr(pytorch, "score", spoiled)


def test_solutions_with_non_finite_pytorch_numbers_are_skipped(
    int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_number(monkeypatch, 1)
    done = parity(int8, "--json", limit=3)
    assert done.exit_code == 1
    assert "line 2 is skipped: non_finite: PyTorch at fp32" in done.stderr
    assert json.loads(done.stdout)["fidelity"]["num_sequences"] == 2


def test_parity_without_finite_pytorch_numbers_is_an_error(
    int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_number(monkeypatch, 0, 1)
    done = parity(int8, limit=2)
    assert (done.exit_code, done.stdout) == (NonFinite.exit_code, "")
    assert "hint: use --dtype bf16 or fp32" in done.stderr


# How it says no


def test_an_adapter_beside_the_model_is_refused(int8: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(POLICY, tmp_path / "policy")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (policy / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": np.ones((1, 128), "f4"), f"{name}B.weight": np.ones((128, 1), "f4")}
    save_file(factors, policy / "adapter_model.safetensors")
    done = parity(int8, "--policy", policy)
    assert done.exit_code == 3
    assert "holds a LoRA adapter" in done.stderr
    assert "parity works with transformers" in done.stderr


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_parity_without_pytorch_says_what_to_install(
    int8: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = parity(int8)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == f"error: {package} is not installed\nhint: pip install 'stepscore[torch]'\n"


def test_matplotlib_is_needed_for_output_only(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "matplotlib", "matplotlib")
    assert parity(int8).exit_code == 0
    done = parity(int8, "--output", tmp_path / "out")
    assert done.exit_code == 3
    assert "error: matplotlib is not installed\nhint: pip install 'stepscore[plots]'\n" in done.stderr
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_another_shape_are_refused(int8: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    done = parity(int8, "--policy", other, "--reference", other)
    assert done.exit_code == 3
    assert re.search(r"error: \w+ is \d+ in the pair and \d+ in the checkpoints", done.stderr)
    assert "exported from, policy and reference" in done.stderr


def test_checkpoints_of_another_name_are_a_warning(int8: Path) -> None:
    done = parity(int8, "--policy", REFERENCE, "--reference", POLICY, "--json")
    assert done.exit_code == 0
    assert "warning: the pair's policy was exported from policy, this one is reference\n" in done.stderr
    assert json.loads(done.stdout)["fidelity"]["correlation"] < -0.9


def test_missing_checkpoint_is_rejected_before_scoring(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_command, "_score", None)
    done = parity(int8, "--policy", "no such folder")
    assert done.exit_code == 3
    assert "no folder at no such folder" in done.stderr


@pytest.mark.parametrize("beta", ["0", "-1", "nan", "inf"])
def test_invalid_beta_is_a_usage_error(int8: Path, beta: str) -> None:
    assert parity(int8, "--beta", beta).exit_code == 2


def test_output_over_a_file_or_pair_is_rejected(int8: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = sorted(path.name for path in int8.iterdir())
    for output in (tmp_path / "file", int8):
        done = parity(int8, "--output", output)
        assert done.exit_code == 3
        assert "hint: choose another --output" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in int8.iterdir()) == before


def test_an_interrupted_run_leaves_nothing_behind(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(pytorch, "score", interrupted)
    done = parity(int8, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert list(tmp_path.iterdir()) == []

"""`stepscore parity`: the bundled pair against PyTorch, what it prints and writes."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from testing.families import FAMILY_SHAPES
from testing.pairs import Checkpoints, export_unmeasured
from testing.parity_command import REFERENCE, arguments, parity, problem, report

from stepscore.artifact.pair import Pair
from stepscore.enums import Convention, Precision
from stepscore_export.options import ExportOptions

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

PLOTS = ("log_ratio_error.svg", "step_rewards.svg")


# What it measures


def test_an_fp32_pair_agrees_with_pytorch_fp32(fp32: Path) -> None:
    found = report(fp32)["fidelity"]
    assert found["logprob_max"] <= 1e-4
    assert (found["step_signs"], found["first_errors"]) == (1, 1)


@pytest.mark.parametrize("family", ["llama3", "qwen3", "qwen2-yarn"])
def test_a_pair_of_any_family_agrees_with_pytorch(tmp_path: Path, family: str) -> None:
    shape = replace(FAMILY_SHAPES[family], max_position_embeddings=512)
    models = Checkpoints.write(tmp_path, shape)
    pair = export_unmeasured(
        models.policy, models.reference, tmp_path / "pair", ExportOptions(Precision.FP32)
    ).path
    done = parity(pair, "--policy", models.policy, "--reference", models.reference, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["fidelity"]
    assert found["num_sequences"] == 3
    assert found["logprob_max"] <= 1e-4


def test_an_int8_pair_is_near_and_not_equal(int8: Path) -> None:
    found = report(int8)["fidelity"]
    assert 0 < found["ratio_error"] < 0.1
    assert 0.99 < found["correlation"] < 1


def test_tokens_and_steps_are_those_of_the_lines(int8: Path) -> None:
    found = report(int8, limit=3)
    steps = [json.loads(problem(index))["steps"] for index in range(3)]
    assert found["num_lines"] == found["fidelity"]["num_sequences"] == 3
    assert found["fidelity"]["num_steps"] == sum(map(len, steps))


@pytest.mark.parametrize("convention", [Convention.RESPONSE, Convention.EXACT])
def test_the_other_conventions_compare_the_response_only(int8: Path, convention: Convention) -> None:
    card, other = report(int8), report(int8, "--convention", convention)
    assert other["fidelity"]["num_tokens"] < card["fidelity"]["num_tokens"]
    assert other["fidelity"]["num_steps"] == card["fidelity"]["num_steps"]


def test_beta_scales_rewards_and_no_error(int8: Path) -> None:
    default, other = report(int8), report(int8, "--beta", 0.05)
    assert other["threshold"] == pytest.approx(50 * default["threshold"])
    assert other["fidelity"] == default["fidelity"]


def test_pytorch_at_bf16_is_further_from_the_pair_than_at_fp32(fp32: Path) -> None:
    exact, rounded = (report(fp32, "--dtype", dtype)["fidelity"] for dtype in ("fp32", "bf16"))
    assert rounded["ratio_error"] > 10 * exact["ratio_error"]


# What it prints and writes


def test_parity_prints_a_table_on_stdout_and_nothing_on_stderr(int8: Path) -> None:
    done = parity(int8)
    assert (done.exit_code, done.stderr) == (0, "")
    title, _, _, _, *lines = done.stdout.splitlines()
    assert title.strip() == "stepscore int8 on cpu against PyTorch fp32 on cpu"
    names = [re.split(r"\s{2,}", line.strip())[0] for line in lines]
    assert names[: names.index("")] == [
        "solutions compared",
        "steps compared",
        "tokens compared",
        "log-prob error, RMS",
        "log-prob error, largest",
        "log-ratio, RMS",
        "log-ratio error",
        "log-ratio correlation",
        "step reward error",
        "cumulative reward error",
        "same sign of step reward",
        "same first error",
        "tokens/s, stepscore",
        "tokens/s, PyTorch",
    ]


def test_csv_has_a_number_for_every_figure_and_the_machine(int8: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(parity(int8, "--format", "csv", limit=1).stdout)))
    values = {row["figure"]: float(row["value"]) for row in rows}
    assert values["solutions compared"] == 1
    assert 0 < values["log-ratio error"] < 1
    assert rows[0]["pair"] == Pair.open(int8).fingerprint
    assert int(rows[0]["cores"]) >= 1


def test_the_table_says_when_the_rounding_of_pytorch_counts(int8: Path) -> None:
    assert "PyTorch's own rounding is part of every error above" in parity(int8, "--dtype", "bf16").stdout


def test_json_says_what_was_compared_with_what(int8: Path) -> None:
    found = report(int8)
    assert found["pair"].keys() >= {"fingerprint", "precision", "coding", "provider", "tokens_per_second"}
    assert found["pytorch"]["policy"] == {"name": "policy", "revision": None}
    assert found["pytorch"].keys() >= {"dtype", "device", "torch", "transformers", "tokens_per_second"}
    assert found["convention"] == "card"
    assert found["left_out"] == {}
    assert found["pair"]["tokens_per_second"] > 0
    assert found["pytorch"]["tokens_per_second"] > 0


def test_output_holds_the_report_and_two_plots_and_nothing_else(int8: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    drawn = []
    for _ in range(2):  # what an earlier run wrote is replaced, and the same numbers draw the same plots
        done = parity(int8, "--json", "--output", folder, limit=1)
        assert done.exit_code == 0
        assert sorted(path.name for path in folder.iterdir()) == [PLOTS[0], "parity.json", PLOTS[1]]
        assert (folder / "parity.json").read_text() == done.stdout
        drawn.append([(folder / name).read_bytes() for name in PLOTS])
    assert drawn[0] == drawn[1]
    for image in drawn[0]:
        assert ElementTree.fromstring(image).tag == "{http://www.w3.org/2000/svg}svg"


def test_equal_models_have_plots_too(tmp_path: Path) -> None:
    """Log-ratios are zero throughout, which a log scale cannot show."""
    pair = export_unmeasured(REFERENCE, REFERENCE, tmp_path / "pair", ExportOptions(Precision.FP32)).path
    done = parity(pair, "--policy", REFERENCE, "--json", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["fidelity"]
    assert (found["ratio_rms"], found["ratio_error"]) == (0, 0)
    assert all((tmp_path / "out" / name).exists() for name in PLOTS)


def test_data_may_come_from_standard_input(int8: Path) -> None:
    assert report(int8, data="-", stdin=problem(0) + "\n")["data"] == "-"


def test_parity_runs_as_a_process(int8: Path) -> None:
    code = "from stepscore.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments(int8, "--json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # this process has other threads, and with them other last bits
    assert json.loads(done.stdout)["fidelity"] == pytest.approx(report(int8)["fidelity"], rel=0.01)


def test_parity_help_imports_nothing_heavy() -> None:
    code = "import sys, stepscore_export.cli.parity; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"torch", "transformers", "matplotlib", "numpy", "onnxruntime"}.isdisjoint(done.stdout.split())

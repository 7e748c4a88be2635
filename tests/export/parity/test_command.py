"""`stepscore parity`: the bundled pair against PyTorch, what it prints and writes, and how it says no."""

from __future__ import annotations

import csv
import gc
import io
import json
import re
import shutil
import subprocess
import sys
import weakref
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from testing.checkpoints import write_checkpoint
from testing.pairs import Checkpoints, PairOf, export_unmeasured
from testing.shared_folder import SharedFolder
from testing.uninstalled import uninstall

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.pytorch.loading import Device
from stepscore.enums import Activations, Convention, Precision
from stepscore.errors import NonFinite
from stepscore_export.options import ExportOptions
from stepscore_export.parity import pytorch
from stepscore_export.parity import run as parity_command
from stepscore_export.parity.compare import ScoredSolution, compare, profile
from stepscore_export.parity.pytorch import DType, Run

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[3] / "examples"
POLICY, REFERENCE = EXAMPLES / "pair" / "policy", EXAMPLES / "pair" / "reference"
PROBLEMS = EXAMPLES / "problems.jsonl"
PLOTS = ("log_ratio_error.svg", "step_rewards.svg")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundled_pair_of(shared_folder: SharedFolder) -> PairOf:
    return PairOf(Checkpoints(POLICY, REFERENCE), shared_folder)


@pytest.fixture(scope="module")
def int8(bundled_pair_of: PairOf) -> Path:
    return bundled_pair_of.form(ExportOptions(Precision.INT8, activations=Activations.EXACT))


@pytest.fixture(scope="module")
def fp32(bundled_pair_of: PairOf) -> Path:
    return bundled_pair_of.form(ExportOptions(Precision.FP32))


def arguments(pair: Path, *more: object, data: object = PROBLEMS, limit: int = 3) -> list[str]:
    models = ["--policy", POLICY, "--reference", REFERENCE]
    return [str(part) for part in ["parity", pair, *models, "--data", data, "--limit", limit, *more]]


def parity(pair: Path, *more: object, data: object = PROBLEMS, limit: int = 3, stdin: str = "") -> Result:
    return CliRunner().invoke(main, arguments(pair, *more, data=data, limit=limit), input=stdin)


@cache
def report(pair: Path, *more: object, **options: Any) -> dict[str, Any]:
    """The same command is run once."""
    done = parity(pair, "--json", *more, **options)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def lines(tmp_path: Path, *texts: str) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def problem(index: int) -> str:
    return PROBLEMS.read_text(encoding="utf-8").splitlines()[index]


# What it measures


def test_an_fp32_pair_agrees_with_pytorch_fp32(fp32: Path) -> None:
    found = report(fp32)["fidelity"]
    assert found["logprob_max"] <= 1e-4
    assert (found["step_signs"], found["first_errors"]) == (1, 1)


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


def test_rewards_are_compared_from_the_first_log_prob_that_is_summed() -> None:
    policy = np.array([9, 1, 2, 3], np.float32)
    ours = ScoredSolution(1, np.arange(5), (policy, np.zeros(4, np.float32)), np.array([1, 3]), start=1)
    found = compare([ours], [(policy.astype(np.float64), np.zeros(4))], beta=0.5)
    assert found.step_rewards.tolist() == found.pytorch_step_rewards.tolist() == [0.5, 2.5]
    assert found.positions.tolist() == [2, 3, 4]
    assert found.fidelity.num_tokens == 3


def test_a_profile_has_bins_of_equal_count_in_order() -> None:
    positions = np.random.default_rng(0).permutation(1000)
    found = profile(positions, positions.astype(float))
    assert len(found.positions) == 20
    assert (np.diff(found.positions) > 0).all()
    np.testing.assert_array_equal(found.median, found.positions)
    assert (found.percentile90 > found.median).all()


# The PyTorch side


def test_the_head_in_chunks_gives_what_the_whole_model_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    ids = np.arange(1, 60)
    monkeypatch.setattr(pytorch, "HEAD_ROWS", 7)
    (found,) = pytorch.score(POLICY, [ids], dtype=DType.FP32, device=Device.CPU).logprobs
    model = transformers.Qwen2ForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].log_softmax(-1)
    expected = whole.gather(1, torch.from_numpy(ids)[1:, None])[:, 0].double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_one_model_is_gone_before_the_next_is_loaded(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load = pytorch.from_pretrained

    def watched(*given: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        model = load(*given, **options)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(pytorch, "from_pretrained", watched)
    gc.disable()  # nothing but the code under test may free it
    try:
        assert parity(int8).exit_code == 0
    finally:
        gc.enable()
    assert alive == [0, 0]


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
    assert "own rounding" not in parity(int8).stdout
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
        done = parity(int8, "--json", "--output", folder)
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


def test_cuda_without_a_gpu_is_refused(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = parity(int8, "--device", "cuda")
    assert done.exit_code == 3
    assert "finds no CUDA device" in done.stderr


def test_too_little_memory_is_an_error_with_a_way_out(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_given: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(pytorch, "from_pretrained", load)
    done = parity(int8)
    assert done.exit_code == 3
    assert "CUDA out of memory\nhint: use --dtype bf16" in done.stderr


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

"""What a sealed pair says of its own fidelity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from testing.checkpoints import TINY, write_checkpoint
from testing.forms import INTEGER, MERGED, name_of
from testing.pairs import Checkpoints, PairOf

from stepscore.artifact.manifest import Fidelity
from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.enums import Precision
from stepscore_export.fidelity import FidelityMetrics
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.measure import rounded

pytestmark = pytest.mark.slow

GOOD = '{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}'


def fidelity_of(pair: Path) -> Fidelity:
    found = Pair.open(pair).manifest.fidelity
    assert found is not None
    return found


def error_of(pair: Path) -> float:
    error = fidelity_of(pair).ratio_error
    assert error is not None
    return error


# The numbers


@pytest.fixture(scope="module")
def measured_pair_of(pair_of: PairOf) -> PairOf:
    return pair_of.measured


def test_an_fp32_pair_is_as_good_as_exact(measured_pair_of: PairOf) -> None:
    found = fidelity_of(measured_pair_of())
    assert error_of(measured_pair_of()) < 1e-3
    assert found.logprob_rms < 1e-5
    assert (found.correlation, found.step_signs, found.first_errors) == (1, 1, 1)


def test_fidelity_is_measured_on_bundled_texts_that_fit(measured_pair_of: PairOf) -> None:
    found = fidelity_of(measured_pair_of())
    assert found.data == "bundled"
    assert 4 <= found.num_sequences <= 12
    assert found.num_steps > found.num_sequences
    assert found.num_tokens < found.num_sequences * TINY.max_position_embeddings


@pytest.mark.parametrize(
    "options",
    [
        *MERGED.values(),
        INTEGER,
    ],
    ids=name_of,
)
def test_coded_pair_halves_the_error_of_independent_models(
    measured_pair_of: PairOf, options: ExportOptions
) -> None:
    independent = measured_pair_of(options.precision)
    assert error_of(measured_pair_of.form(options)) < error_of(independent) / 2


def test_more_bits_mean_a_smaller_error(measured_pair_of: PairOf) -> None:
    order = [Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4]
    errors = [error_of(measured_pair_of(precision)) for precision in order]
    assert errors == sorted(errors)


def test_a_model_too_short_for_every_bundled_text_has_none(tmp_path: Path) -> None:
    shape = replace(TINY, max_position_embeddings=16)
    policy = write_checkpoint(tmp_path / "policy", shape, seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", shape, seed=1)
    done = export(policy, reference, tmp_path / "pair")
    assert done.exit_code == 0
    assert "fidelity" not in done.stderr
    stored = json.loads((tmp_path / "pair" / "manifest.json").read_text())
    assert stored["fidelity"] is None
    assert Pair.open(tmp_path / "pair").manifest.fidelity is None


# The command


def export(policy: Path, reference: Path, output: Path, *arguments: object) -> Result:
    models = ["--policy", policy, "--reference", reference]
    command = ["export", *models, "--output", output, "--precision", "fp32", *arguments]
    return CliRunner().invoke(main, [str(each) for each in command])


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_text_of_the_user_is_used_named_and_printed(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    data = write(tmp_path / "mine.jsonl", GOOD, GOOD.replace("1 + 1", "2 + 2"))
    output = tmp_path / "pair"
    done = export(tiny_checkpoints.policy, tiny_checkpoints.reference, output, "--fidelity-data", data)
    assert done.exit_code == 0
    found = fidelity_of(output)
    assert (found.data, found.num_sequences, found.num_steps) == ("mine.jsonl", 2, 4)
    assert f"fidelity: {found}" in done.stderr
    shown = CliRunner().invoke(main, ["inspect", str(output)]).stdout
    assert f"fidelity {found}" in " ".join(shown.split())


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["export", "dry-run"])
@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "mine.jsonl is empty"),
        ([GOOD, "{"], "mine.jsonl, line 2: "),
        ([GOOD, '{"problem": "1 + 1?", "steps": [" "]}'], "mine.jsonl, record 2: steps[0] is white space"),
        ([GOOD.replace("1 + 1?", "1 + 1? " * 300)], "all solutions of mine.jsonl are longer than the 512"),
    ],
    ids=["empty", "no-json", "nothing-to-score", "too-long"],
)
def test_unusable_fidelity_data_is_rejected_before_writing(
    tiny_checkpoints: Checkpoints, tmp_path: Path, lines: list[str], error: str, arguments: list[str]
) -> None:
    data = write(tmp_path / "mine.jsonl", *lines)
    output = tmp_path / "place" / "pair"
    models = tiny_checkpoints.policy, tiny_checkpoints.reference
    done = export(*models, output, "--fidelity-data", data, *arguments)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_manifest_keeps_four_digits_and_no_infinite_error() -> None:
    metrics = FidelityMetrics(
        num_sequences=12_345,
        num_tokens=123_456,
        num_steps=5,
        ratio_rms=0.0,
        logprob_rms=1.23456e-5,
        logprob_max=1.0,
        ratio_error=math.inf,
        step_error=math.inf,
        cumulative_error=0.123456,
        correlation=0.0,
        step_signs=2 / 3,
        first_errors=1.0,
    )
    kept = rounded(metrics, "mine.jsonl")
    assert (kept.data, kept.num_sequences, kept.num_tokens) == ("mine.jsonl", 12_345, 123_456)
    assert (kept.ratio_error, kept.step_error, kept.cumulative_error) == (None, None, 0.1235)
    assert (kept.logprob_rms, kept.step_signs) == (1.235e-5, 0.6667)


def test_large_models_use_fewer_bundled_texts_but_all_user_texts(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepscore_export.pipeline.plan.FIDELITY_WORK", 1)
    models = tiny_checkpoints.policy, tiny_checkpoints.reference
    pair = export_pair(*models, tmp_path / "bundled", ExportOptions(Precision.FP32))
    assert pair.manifest.fidelity is not None
    assert pair.manifest.fidelity.num_sequences == 1
    data = write(tmp_path / "mine.jsonl", GOOD, GOOD.replace("1 + 1?", "2 + 2?"))
    export(*models, tmp_path / "given", "--fidelity-data", data, "--quiet")
    assert fidelity_of(tmp_path / "given").num_sequences == 2


def test_the_same_export_measures_the_same(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Byte for byte, a text of the user's included."""
    data = write(tmp_path / "mine.jsonl", GOOD)
    manifests = []
    for name in ("once", "again"):
        arguments = ["--precision", "int4", "--fidelity-data", data, "--quiet"]
        export(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / name, *arguments)
        manifests.append((tmp_path / name / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_the_measure_is_of_the_texts_it_was_given(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Not of the bundled ones: another text has other numbers."""
    models = tiny_checkpoints.policy, tiny_checkpoints.reference
    found = []
    for index, problem in enumerate(("1 + 1?", "What is seven times eight?")):
        data = write(tmp_path / f"{index}.jsonl", GOOD.replace("1 + 1?", problem))
        export(*models, tmp_path / str(index), "--fidelity-data", data, "--quiet")
        found.append(fidelity_of(tmp_path / str(index)))
    assert found[0].ratio_rms != found[1].ratio_rms
    assert found[0].num_tokens < found[1].num_tokens
    pair = export_pair(*models, tmp_path / "bundled", ExportOptions(Precision.FP32))
    assert pair.manifest.fidelity is not None
    assert pair.manifest.fidelity.num_sequences > 1

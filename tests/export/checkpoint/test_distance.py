"""How far apart two models are is measured, decides how they are coded, and is said."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testing.checkpoints import TINY, edit_tensors, tied, weights, write_checkpoint
from testing.pairs import Checkpoints, PairOf

from stepscore.artifact.manifest import Distance
from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.enums import Activations, Coding, DifferencePrecision, Precision
from stepscore_export.checkpoint import distance as distance_module
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.families.base import EMBEDDING
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.coding import ROUNDING, choose_coding, choose_difference_precision
from stepscore_export.quantization.rounding import dequantize, quantize

TALL = replace(TINY, vocab_size=4001)
HEAD = "lm_head.weight"
ROUNDED = tuple(each for each in DifferencePrecision if each is not DifferencePrecision.LOSSLESS)


def measured(policy: Path, reference: Path) -> Distance:
    with Checkpoint.open(policy) as ours, Checkpoint.open(reference) as theirs:
        return measure_distance(ours, theirs)


def truth(policy: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> Distance:
    """Norms of whole matrices in float64; vectors do not count."""
    matrices = {name: each.astype(np.float64) for name, each in reference.items() if each.ndim == 2}
    apart = {name: np.linalg.norm(policy[name] - each) for name, each in matrices.items()}
    sizes = {name: np.linalg.norm(each) for name, each in matrices.items()}
    overall = np.linalg.norm([*apart.values()]) / np.linalg.norm([*sizes.values()])
    return Distance(float(overall), {name: float(apart[name] / sizes[name]) for name in matrices})


# The measure


@pytest.mark.parametrize("perturb", [1e-4, 0.01, 0.5])
@pytest.mark.parametrize("shape", [TINY, tied()], ids=["untied", "tied"])
def test_small_matrices_are_measured_whole(tmp_path: Path, shape: object, perturb: float) -> None:
    assert isinstance(shape, type(TINY))
    policy = write_checkpoint(tmp_path / "policy", shape, seed=1, perturb=perturb)
    reference = write_checkpoint(tmp_path / "reference", shape, seed=1)
    found = measured(policy, reference)
    expected = truth(weights(shape, seed=1, perturb=perturb), weights(shape, seed=1))
    assert found.overall == pytest.approx(expected.overall, rel=1e-9)
    assert found.by_matrix == pytest.approx(expected.by_matrix, rel=1e-9)


def test_large_matrices_are_sampled_within_one_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance_module, "SAMPLE_ELEMENTS", 1 << 17)  # 2,048 of 4,001 rows
    policy = write_checkpoint(tmp_path / "policy", TALL, seed=1, perturb=0.02)
    reference = write_checkpoint(tmp_path / "reference", TALL, seed=1)
    found = measured(policy, reference)
    expected = truth(weights(TALL, seed=1, perturb=0.02), weights(TALL, seed=1))
    assert found.overall == pytest.approx(expected.overall, rel=0.01)
    assert found.by_matrix == pytest.approx(expected.by_matrix, rel=0.01)
    assert found.by_matrix[EMBEDDING] != pytest.approx(expected.by_matrix[EMBEDDING], rel=1e-9)


def test_a_sampled_matrix_counts_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the head differs, and only a part of it is read: the overall distance is as if all were."""

    def double_head(tensors: dict[str, np.ndarray]) -> None:
        tensors[HEAD] = 2 * tensors[HEAD]

    policy, reference = (write_checkpoint(tmp_path / name, TALL) for name in ("policy", "reference"))
    edit_tensors(policy / "model.safetensors", double_head)
    whole = measured(policy, reference)
    monkeypatch.setattr(distance_module, "SAMPLE_ELEMENTS", 1 << 14)
    assert measured(policy, reference).overall == pytest.approx(whole.overall, rel=0.02)


@pytest.mark.parametrize("elements", [64, 1000, 1 << 15])
def test_distance_reads_only_the_sampled_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    monkeypatch.setattr(distance_module, "SAMPLE_ELEMENTS", elements)
    read: dict[str, int] = {}
    rows = Checkpoint.rows

    def counted(self: Checkpoint, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        values = rows(self, name, start, stop)
        read[name] = read.get(name, 0) + values.size
        return values

    folder = write_checkpoint(tmp_path / "model", TALL)
    monkeypatch.setattr(Checkpoint, "rows", counted)
    measured(folder, folder)
    least = distance_module.SLICES * TALL.intermediate_size  # a row a slice is the least there is
    assert max(read.values()) // 2 <= max(elements, least)


def test_a_mixed_pair_compares_the_heads_that_are_used(tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", tied(), seed=1)
    reference = write_checkpoint(tmp_path / "reference", seed=1)
    by_matrix = measured(policy, reference).by_matrix
    own = weights(TINY, seed=1)
    expected = np.linalg.norm(own[EMBEDDING] - own[HEAD]) / np.linalg.norm(own[HEAD])
    assert by_matrix[EMBEDDING] == 0
    assert by_matrix[HEAD] == pytest.approx(float(expected))


def test_distance_of_a_model_to_itself_is_zero(tiny_checkpoints: Checkpoints) -> None:
    found = measured(tiny_checkpoints.policy, tiny_checkpoints.policy)
    assert found.overall == 0
    assert set(found.by_matrix.values()) == {0}


# The choice


@pytest.mark.parametrize("bits", ROUNDING)
def test_rounding_error_matches_its_table(bits: int) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 1024), np.float32)
    error = dequantize(quantize(weight, bits, 32), bits, 1024) - weight
    assert np.linalg.norm(error) / np.linalg.norm(weight) == pytest.approx(ROUNDING[bits], rel=0.15)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
@pytest.mark.parametrize("difference", ROUNDED)
def test_int8_codes_identical_models_and_not_unrelated_ones(
    precision: Precision, difference: DifferencePrecision
) -> None:
    options = ExportOptions(precision, difference_precision=difference)
    assert choose_coding(options, Distance(0.0, {})) is Coding.DIFFERENCE
    fine = difference is DifferencePrecision.INT8 or (precision, difference) == (
        Precision.INT4,
        DifferencePrecision.INT4,
    )
    expected = Coding.DIFFERENCE if fine else Coding.INDEPENDENT  # |D| = sqrt(2) |W| is the same error
    assert choose_coding(options, Distance(1.4, {})) is expected


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_coding_threshold_is_where_errors_are_equal(precision: Precision) -> None:
    """|D| = sqrt(2) |W|: at the end the difference has the bits of the base."""
    for options in (ExportOptions(precision), ExportOptions(precision, activations=Activations.EXACT)):
        assert choose_coding(options, Distance(0.99 * math.sqrt(2), {})) is Coding.DIFFERENCE
        assert choose_coding(options, Distance(1.01 * math.sqrt(2), {})) is Coding.INDEPENDENT


EVEN = math.sqrt(2) * ROUNDING[8] / ROUNDING[4]
"""|D| / |W| where an int4 difference is as far off as two models at int8."""


def test_requested_int4_difference_lowers_the_coding_threshold() -> None:
    options = ExportOptions(Precision.INT8, difference_precision=DifferencePrecision.INT4)
    assert choose_coding(options, Distance(0.99 * EVEN, {})) is Coding.DIFFERENCE
    assert choose_coding(options, Distance(1.01 * EVEN, {})) is Coding.INDEPENDENT


def test_difference_has_8_bits_if_4_add_error_to_an_int8_base() -> None:
    exact = ExportOptions(Precision.INT8, activations=Activations.EXACT)
    near, far = Distance(0.99 * EVEN, {}), Distance(1.01 * EVEN, {})
    assert choose_difference_precision(exact, near) is DifferencePrecision.INT4
    assert choose_difference_precision(exact, far) is DifferencePrecision.INT8
    for distance in (near, far):
        assert choose_difference_precision(ExportOptions(), distance) is DifferencePrecision.INT8
        four = choose_difference_precision(ExportOptions(Precision.INT4), distance)
        assert four is DifferencePrecision.INT4


@pytest.mark.parametrize("asked", ROUNDED)
@pytest.mark.parametrize("overall", [0.0, 1.0])
def test_requested_difference_precision_is_kept(asked: DifferencePrecision, overall: float) -> None:
    options = ExportOptions(Precision.INT8, difference_precision=asked)
    assert choose_difference_precision(options, Distance(overall, {})) is asked


@pytest.mark.parametrize("coding", [Coding.DIFFERENCE, Coding.INDEPENDENT])
@pytest.mark.parametrize("overall", [0.0, 5.0])
def test_requested_coding_is_kept(coding: Coding, overall: float) -> None:
    assert choose_coding(ExportOptions(Precision.INT8, coding=coding), Distance(overall, {})) is coding


# What is said of it


def export(policy: Path, reference: Path, output: Path, *arguments: str) -> Result:
    command = ["export", "--policy", policy, "--reference", reference, "--output", output, *arguments]
    done = CliRunner().invoke(main, [str(each) for each in command])
    assert done.exit_code == 0
    return done


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("unrelated") / "policy", seed=7)


@pytest.mark.slow
def test_identical_models_are_stored_as_a_difference(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tiny_checkpoints.reference
    done = export(folder, folder, tmp_path / "pair", "--activations", "exact")
    assert Pair.open(tmp_path / "pair").manifest.coding is Coding.DIFFERENCE
    assert "int8 reference + int4 difference" in done.stderr
    assert "quantized alone" not in done.stderr


def test_unrelated_models_are_stored_independently_with_a_message(
    tiny_checkpoints: Checkpoints, unrelated: Path, tmp_path: Path
) -> None:
    done = export(unrelated, tiny_checkpoints.reference, tmp_path / "pair", "--precision", "int8")
    manifest = Pair.open(tmp_path / "pair").manifest
    assert (manifest.coding, manifest.difference) == (Coding.INDEPENDENT, None)
    apart = f"{100 * manifest.distance.overall:.2f} %"
    assert f"each model was quantized alone: |policy - reference| is {apart} of |reference|" in done.stderr


@pytest.mark.slow
def test_unrelated_models_are_coded_on_request(
    tiny_checkpoints: Checkpoints, unrelated: Path, tmp_path: Path
) -> None:
    options = ["--coding", "difference", "--activations", "exact", "--quiet"]
    export(unrelated, tiny_checkpoints.reference, tmp_path / "pair", *options)
    manifest = Pair.open(tmp_path / "pair").manifest
    assert manifest.coding is Coding.DIFFERENCE
    assert manifest.difference is not None
    assert manifest.difference.precision is DifferencePrecision.INT8


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_the_distance_is_in_every_manifest(
    pair_of: PairOf, tiny_checkpoints: Checkpoints, precision: Precision
) -> None:
    expected = measured(tiny_checkpoints.policy, tiny_checkpoints.reference)
    assert Pair.open(pair_of(precision)).manifest.distance == expected
    assert expected.overall == pytest.approx(0.01, rel=0.05)


def test_inspect_and_dry_run_print_the_same_distance(
    tiny_pair: Path, tiny_checkpoints: Checkpoints, tmp_path: Path
) -> None:
    planned = export(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair", "--dry-run")
    inspected = CliRunner().invoke(main, ["inspect", str(tiny_pair)])
    said = re.compile(r"^distance +(.*?)\s*$", re.MULTILINE)
    (line,) = said.findall(planned.stdout)
    assert said.findall(inspected.stdout) == [line]
    overall = Pair.open(tiny_pair).manifest.distance.overall
    assert line == f"|policy - reference| is {100 * overall:.2f} % of |reference|"


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ([], "int8 reference + int8 difference, int8 activations for cpu, block size 32"),
        (["--activations", "exact"], "int8 reference + int4 difference for cpu, block size 32"),
        (["--target", "cuda"], "int8 reference + int4 difference for cuda, block size 32"),
        (["--precision", "int4"], "int4 reference + int4 difference for cpu, block size 32"),
        (["--precision", "int4", "--coding", "independent"], "int4, each model quantized alone for cpu"),
        (["--precision", "fp16"], "fp16 for cpu"),
    ],
    ids=["default", "exact", "cuda", "int4", "independent", "fp16"],
)
def test_dry_run_prints_the_chosen_coding(
    tiny_checkpoints: Checkpoints, tmp_path: Path, arguments: list[str], plan: str
) -> None:
    output = tmp_path / "pair"
    done = export(tiny_checkpoints.policy, tiny_checkpoints.reference, output, "--dry-run", *arguments)
    assert f"{output}: {plan}" in done.stdout
    assert list(tmp_path.iterdir()) == []

"""`stepscore inspect`, `verify` and `doctor`: what a pair is, whether it is whole, whether it runs here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from testing.uninstalled import uninstall

from stepscore.artifact.graph_contract import graph_files
from stepscore.artifact.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Architecture,
    Difference,
    Distance,
    Extent,
    Fidelity,
    FileEntry,
    Manifest,
    Selftest,
    Source,
    Unit,
)
from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.ort.provider_checks import TINY_MODEL
from stepscore.enums import (
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Provider,
    Target,
)
from stepscore.errors import ProviderUnavailable
from stepscore.prompt.template import Template


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# Inspect and verify


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair whose files nobody opens."""
    opened = Pair(
        tmp_path,
        Manifest(
            schema_version=SCHEMA_VERSION,
            policy=Source("org/policy", "0123abcd"),
            reference=Source("reference"),
            architecture=Architecture(64, 128, 2, 4, 2, 16, 1000, 4096),
            format=Format.ONNX,
            exporter=Exporter.STEPSCORE,
            precision=Precision.INT8,
            block_size=32,
            target=Target.CPU,
            coding=Coding.DIFFERENCE,
            difference=Difference(DifferencePrecision.INT4, Activations.EXACT, Products.MERGED),
            distance=Distance(0.0123, {"lm_head.weight": 0.0123}),
            beta=0.001,
            template=Template("a", "b", "c"),
            prefix_tokens=24,
            units=(
                Unit("both", ("reference", "policy"), {name: Extent(0, 1) for name in graph_files(2, 1000)}),
            ),
            selftest=Selftest(provider="cpu", num_tokens=64, hidden_error=1e-6, logprob_error=2e-5),
            fidelity=None,
            versions={"stepscore": "0.1.0"},
            files={"tokenizer.json": FileEntry(1_500_000, "0" * 64)},
        ),
        "f" * 64,
    )
    monkeypatch.setattr(Pair, "open", lambda path: opened)
    return opened


def test_inspect_shows_what_the_pair_is(pair: Pair) -> None:
    done = invoke("inspect", pair.path)
    assert done.exit_code == 0
    for fact in [
        "org/policy@0123abcd",
        "int8, blocks of 32, for cpu",
        "difference at int4, exact activations, merged",
        "|policy - reference| is 1.23 % of |reference|",
        "24 tokens stored with their keys and values",
        "0.001",
        "1.5 MB in 1 files",
        "f" * 64,
    ]:
        assert fact in done.stdout


def test_inspect_of_int8_activations_names_no_blocks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix has one scale a row, whatever the block size was."""
    integer = Difference(DifferencePrecision.INT8, Activations.INT8, None, calibration="mine.jsonl")
    stored = replace(pair, manifest=msgspec.structs.replace(pair.manifest, difference=integer))
    monkeypatch.setattr(Pair, "open", lambda path: stored)
    shown = " ".join(invoke("inspect", pair.path).stdout.split())
    assert "int8, for cpu" in shown
    assert "difference at int8, int8 activations, calibrated on mine.jsonl" in shown


def test_inspect_json_is_the_manifest(pair: Pair) -> None:
    found = json.loads(invoke("inspect", pair.path, "--json").stdout)["manifest"]
    assert msgspec.convert(found, Manifest) == pair.manifest


def test_verify_says_that_all_is_intact(tiny_pair: Path) -> None:
    files = [path for path in tiny_pair.rglob("*") if path.is_file() and path.name != MANIFEST]
    size = sum(path.stat().st_size for path in files) / 1e6
    done = invoke("verify", tiny_pair)
    assert (done.exit_code, done.stdout) == (
        0,
        f"{tiny_pair}: {len(files)} files, {size:.1f} MB, all intact\n",
    )


def test_verify_names_the_faulty_file_and_exits_3(pair_copy: Path) -> None:
    with (pair_copy / "policy" / "weights.bin").open("r+b") as weights:
        weights.write(b"damaged")
    done = invoke("verify", pair_copy)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith("error: policy/weights.bin ")


@pytest.mark.parametrize("command", ["inspect", "verify", "doctor"])
def test_missing_pair_exits_3(command: str) -> None:
    done = invoke(command, "no/such/folder")
    assert done.exit_code == 3
    assert "is not a folder" in done.output


FIDELITY = Fidelity(
    data="mine.jsonl",
    num_sequences=8,
    num_tokens=900,
    num_steps=30,
    ratio_rms=0.2,
    logprob_rms=0.01,
    ratio_error=0.0123,
    step_error=0.01,
    cumulative_error=None,
    correlation=0.999,
    step_signs=0.9667,
    first_errors=0.875,
)


@pytest.mark.parametrize(
    ("fidelity", "said"),
    [
        (
            FIDELITY,
            "log-ratio error 1.23 %, same sign of 96.7 % of 30 steps, "
            "same first error in 88 % of 8 solutions (mine.jsonl text)",
        ),
        (msgspec.structs.replace(FIDELITY, ratio_error=None), "log-ratio error unknown, same sign of"),
    ],
)
def test_inspect_shows_the_fidelity(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, fidelity: Fidelity, said: str
) -> None:
    measured = replace(pair, manifest=msgspec.structs.replace(pair.manifest, fidelity=fidelity))
    monkeypatch.setattr(Pair, "open", lambda path: measured)
    shown = " ".join(invoke("inspect", pair.path).stdout.split())
    assert f"fidelity {said}" in shown


def test_inspect_omits_a_missing_fidelity(pair: Pair) -> None:
    assert "fidelity" not in invoke("inspect", pair.path).stdout


# Doctor


def test_doctor_says_that_scoring_works_here_and_with_what(tiny_pair: Path) -> None:
    done = invoke("doctor", tiny_pair)
    assert done.exit_code == 0
    for fact in [
        f"onnxruntime {onnxruntime.__version__}",
        "cores usable",
        "GB available",
        "for cpu",
        "scoring works",
    ]:
        assert fact in done.stdout


def test_doctor_without_a_pair_needs_one_working_provider() -> None:
    assert invoke("doctor").exit_code == 0


def saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are exact with neither signed nor unsigned weights."""
    saturated = np.full((8, 32), 64 * 32767 / 2, np.float32)
    monkeypatch.setattr(
        "stepscore.engine.ort.provider_checks.largest_products", lambda _depth, **_: saturated
    )


def test_doctor_says_that_a_pair_with_int8_activations_would_saturate_here(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    integer = Difference(DifferencePrecision.INT8, Activations.INT8, None)
    stored = replace(pair, manifest=msgspec.structs.replace(pair.manifest, difference=integer))
    monkeypatch.setattr(Pair, "open", lambda path: stored)
    saturate(monkeypatch)
    done = invoke("doctor", pair.path)
    assert done.exit_code == 3
    assert "8-bit integer GEMM saturates on this CPU" in done.stdout
    assert "hint: export the pair with --activations exact" in done.stdout
    assert "scoring does not work" in done.stdout


def test_doctor_ignores_saturation_for_other_pairs(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saturate(monkeypatch)
    assert invoke("doctor", tiny_pair).exit_code == 0
    assert invoke("doctor").exit_code == 0


def test_doctor_names_what_to_install_when_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(provider: Provider) -> None:
        raise ProviderUnavailable("broken", hint="pip install something")

    monkeypatch.setattr("stepscore.engine.ort.provider_checks.require", fail)
    done = invoke("doctor")
    assert done.exit_code == 3
    assert "hint: pip install something" in done.stdout
    assert "scoring does not work" in done.stdout


def test_doctor_without_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "onnxruntime", "stepscore.engine.ort")
    done = invoke("doctor")
    assert done.exit_code == 3
    assert "onnxruntime is not installed" in done.stdout
    assert "pip install 'stepscore[cpu]'" in done.stdout


def test_the_tiny_model_is_a_valid_matmul() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(TINY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]

"""What a pair of bitsandbytes' weights cannot be asked for, and machines that cannot run one. No torch."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from testing.pairs import Checkpoints
from testing.uninstalled import uninstall

from stepscore.cli.main import main
from stepscore.enums import Format, Precision
from stepscore.errors import ExportError
from stepscore_export.options import BitsandbytesOptions

RECORD = ("--problem", "1 + 1?", "--step", "2.")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# Options of one format with the other


@pytest.mark.parametrize(
    "option",
    [
        ("--target", "cpu"),
        ("--coding", "difference"),
        ("--difference-precision", "int4"),
        ("--activations", "int8"),
        ("--products", "merged"),
        ("--block-size", "32"),
        ("--calibration", __file__),
    ],
    ids=lambda option: option[0],
)
def test_onnx_options_are_rejected_for_bitsandbytes(tmp_path: Path, option: tuple[str, str]) -> None:
    """Even where it is what would be taken anyway: it decides nothing here."""
    models = ("--policy", "p", "--reference", "r", "--output", tmp_path / "pair")
    done = run("export", *models, "--format", "bitsandbytes", *option)
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"error: {option[0]} is not supported with --format bitsandbytes",
        f"hint: drop {option[0]}, or use --format onnx",
    ]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT4])
def test_precision_without_bitsandbytes_kernel_is_rejected(precision: Precision) -> None:
    with pytest.raises(
        ExportError, match=f"precision {precision} is not supported by bitsandbytes"
    ) as refused:
        BitsandbytesOptions(precision)
    assert refused.value.hint == "use --precision int8, nf4 or fp4, or --format onnx"


def test_four_bits_of_bitsandbytes_without_its_format_are_refused(tmp_path: Path) -> None:
    models = ("--policy", "p", "--reference", "r", "--output", tmp_path / "pair")
    done = run("export", *models, "--precision", "nf4")
    assert done.exit_code == 3
    assert "hint: use --format bitsandbytes, or --precision int4" in done.stderr


def test_invalid_beta_is_rejected() -> None:
    with pytest.raises(ExportError, match="beta is 0"):
        BitsandbytesOptions(beta=0.0)


@pytest.mark.parametrize(
    "of_format", [Format.ONNX, pytest.param(Format.BITSANDBYTES, marks=pytest.mark.torch)]
)
def test_quantized_checkpoint_is_rejected_for_every_format(
    tiny_checkpoints: Checkpoints, tmp_path: Path, of_format: Format
) -> None:
    quantised = shutil.copytree(tiny_checkpoints.policy, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    models = ("--policy", quantised, "--reference", tiny_checkpoints.reference)
    done = run("export", *models, "--format", of_format, "--output", tmp_path / "pair", "--dry-run")
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"error: policy (--policy {quantised}): config.json has `quantization_config`: the checkpoint is "
        "already quantized (bitsandbytes)",
        "hint: export from the original fp32, bf16 or fp16 checkpoint: --format bitsandbytes quantizes it",
    ]


# Machines


@pytest.mark.parametrize("missing", ["torch", "transformers", "accelerate", "bitsandbytes"])
def test_missing_package_is_named_with_its_extra(
    torch_pair: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ("torch", "transformers", "accelerate", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, sys)  # is there
    monkeypatch.setitem(sys.modules, missing, None)  # is not
    done = run("score", torch_pair, *RECORD)
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"error: {missing} is not installed",
        "hint: pip install 'stepscore[torch]'",
    ]
    done = run("doctor", torch_pair)
    assert done.exit_code == 3
    assert f"{missing} is not installed" in done.stdout
    assert "scoring does not work" in done.stdout


def test_missing_package_is_named_before_a_checkpoint_is_read(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    models = ("--policy", tiny_checkpoints.policy, "--reference", tiny_checkpoints.reference)
    for dry_run in ([], ["--dry-run"]):
        done = run("export", *models, "--format", "bitsandbytes", "--output", tmp_path / "pair", *dry_run)
        assert done.exit_code == 3
        assert "error: torch is not installed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bitsandbytes_pair_scores_without_onnxruntime(
    torch_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets as far as what it does need."""
    uninstall(monkeypatch, "onnxruntime", "stepscore.engine.ort")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "error: torch is not installed" in run("score", torch_pair, *RECORD).stderr

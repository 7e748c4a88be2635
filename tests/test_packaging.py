"""What is installed, and what an import costs: the runtime stays light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "transformers", "accelerate", "bitsandbytes", "onnx", "onnx_ir", "jinja2", "safetensors"),
    *("huggingface_hub", "ml_dtypes"),
}
RUNTIME = sorted(path.stem for path in (ROOT / "runtime" / "stepscore").glob("[a-z]*.py"))


def modules_after(*imports: str) -> set[str]:
    """Top-level names in a fresh interpreter's sys.modules."""
    code = f"import sys, {', '.join(imports)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_runtime_loads_nothing_of_the_export() -> None:
    loaded = modules_after(*(f"stepscore.{name}" for name in RUNTIME))
    assert loaded & (HEAVY | {"stepscore_export"}) == set()


def test_the_package_itself_loads_no_runtime() -> None:
    assert "onnxruntime" not in modules_after("stepscore", "stepscore.cli.main")


def test_a_scorer_loads_no_runtime_before_it_knows_the_format() -> None:
    assert "onnxruntime" not in modules_after("stepscore.scorer", "stepscore.bench", "stepscore.cli.dry_run")


def test_what_runs_bitsandbytes_loads_nothing_of_the_export() -> None:
    loaded = modules_after("stepscore.engine.pytorch.engine")
    assert loaded & {"onnx", "onnx_ir", "onnxruntime", "jinja2", "huggingface_hub", "ml_dtypes"} == set()


def test_the_export_loads_no_torch() -> None:
    loaded = modules_after(
        "stepscore_export.cli.export", "stepscore_export.cli.export_run", "stepscore.engine.pytorch.engine"
    )
    assert loaded & {"torch", "transformers", "bitsandbytes", "optimum"} == set()


def test_the_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
        files = archive.namelist()
    assert {name for name in names if not name.endswith(".dist-info")} == {"stepscore", "stepscore_export"}
    assert {"stepscore/py.typed", "stepscore_export/py.typed"} <= set(files)
    assert {f"stepscore/report/static/report.{kind}" for kind in ("html", "css", "js")} <= set(files)

"""What is installed, and what an import costs: the runtime stays light."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import stepscore
from stepscore.report.page import SCRIPTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "transformers", "accelerate", "bitsandbytes", "onnx", "onnx_ir", "jinja2", "safetensors"),
    *("huggingface_hub", "ml_dtypes"),
}
RUNTIME = [module.name for module in pkgutil.walk_packages(stepscore.__path__, "stepscore.")]


LAST_WITH_A_HOLE = {
    "filelock": "3.20.2",
    "jinja2": "3.1.5",
    "onnx": "1.20.1",
    "pytest": "9.0.2",
    "ray": "2.51.2",
    "starlette": "0.49.0",
    "torch": "2.10.0",
    "tqdm": "4.66.2",
}
"""The newest versions with a hole that is known; pyproject.toml says which."""


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level names in a fresh interpreter's sys.modules after these imports."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_runtime_modules_are_found_in_all_subpackages() -> None:
    files = (ROOT / "runtime" / "stepscore").rglob("[a-z]*.py")
    assert len(RUNTIME) > 50
    assert {"stepscore.engine.ort.engine", "stepscore.engine.pytorch.engine"} < set(RUNTIME)
    assert {path.stem for path in files} <= {name.rpartition(".")[2] for name in RUNTIME}


def test_runtime_loads_no_heavy_package_and_nothing_of_the_export() -> None:
    """All modules in one process: the PyTorch engine imports torch inside functions only."""
    assert loaded_by(*RUNTIME) & (HEAVY | {"stepscore_export"}) == set()


def test_command_line_loads_no_onnxruntime() -> None:
    assert "onnxruntime" not in loaded_by("stepscore", "stepscore.cli.main")


def test_scorer_loads_no_onnxruntime_before_it_knows_the_format() -> None:
    assert "onnxruntime" not in loaded_by("stepscore.scorer", "stepscore.bench", "stepscore.cli.dry_run")


def test_pytorch_engine_loads_no_onnxruntime() -> None:
    assert "onnxruntime" not in loaded_by("stepscore.engine.pytorch.engine")


def test_export_loads_no_torch() -> None:
    loaded = loaded_by("stepscore_export.cli.export", "stepscore_export.cli.export_run")
    assert loaded & {"torch", "transformers", "bitsandbytes", "optimum"} == set()


def test_no_version_with_a_known_hole_satisfies_a_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    found = [Requirement(text) for group in (project["dependencies"], *extras) for text in group]
    bounded = [each for each in found if each.name in LAST_WITH_A_HOLE]
    assert {each.name for each in bounded} == {*LAST_WITH_A_HOLE}
    assert [each.name for each in bounded if LAST_WITH_A_HOLE[each.name] in each.specifier] == []
    assert all("5.2.0" not in each.specifier for each in found if each.name == "transformers")
    assert all(each.specifier for each in found), "a requirement has no lower bound"


def test_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        files = set(archive.namelist())
    names = {name.partition("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {"stepscore", "stepscore_export"}
    assert {"stepscore/py.typed", "stepscore_export/py.typed"} <= files
    static = {f"stepscore/report/static/report.{kind}" for kind in ("html", "css")}
    assert static | {f"stepscore/report/static/{name}.js" for name in SCRIPTS} <= files
    assert "stepscore/engine/cuda/kernels/lossless.cu" in files
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
    assert set(RUNTIME) <= modules

"""A release: versions agree, the sdist builds the wheel, its bill of materials is valid."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import files as files_of
from pathlib import Path

import pytest
from tools.check_wheel import CheckFailed, compared, rewards, run

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMED = {"click", "msgspec", "numpy"}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cited() -> dict[str, str]:
    """The fields of CITATION.cff that are one line."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([a-z-]+): (.+)$", text, re.MULTILINE))
    return {name: value.strip('"') for name, value in fields.items()}


def bibtex() -> dict[str, str]:
    """The fields of the entry in README."""
    (entry,) = re.findall(
        r"^```bibtex\n@software\{stepscore,\n(.*?)^\}\n```$", README, re.MULTILINE | re.DOTALL
    )
    return {
        name: value.strip("{}")
        for name, value in re.findall(r"^  ([a-z]+) = \{(.*)\},$", entry, re.MULTILINE)
    }


def test_bibtex_citation_file_and_package_agree() -> None:
    entry, file = bibtex(), cited()
    assert entry["version"] == file["version"] == PROJECT["version"]
    assert entry["license"] == file["license"] == PROJECT["license"]
    assert entry["title"] == file["title"]
    assert entry["author"] == PROJECT["authors"][0]["name"]
    assert f"  - name: {entry['author']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_python_that_is_promised_is_run_by_ci_and_by_the_check_of_a_release() -> None:
    promised = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    workflows = ROOT / ".github" / "workflows"
    matrix = re.search(r"python: (\[.*\])", (workflows / "ci.yml").read_text(encoding="utf-8"))
    checked = re.search(r"PYTHONS=\"(.*)\"", (workflows / "release.yml").read_text(encoding="utf-8"))
    assert matrix is not None
    assert checked is not None
    assert json.loads(matrix[1]) == promised
    assert checked[1].split() == [f"python{each}" for each in promised]
    assert f">={promised[0]}" == PROJECT["requires-python"]


def test_install_page_names_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert {name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in page} == set()


@pytest.mark.parametrize("page", ["docs/install.md", "CONTRIBUTING.md"])
def test_every_target_that_a_page_names_is_one_of_the_makefile(page: str) -> None:
    named = re.findall(r"\bmake ([a-z][a-z0-9-]+)", (ROOT / page).read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert {*named} <= {*targets}


@pytest.mark.slow
def test_sdist_builds_the_wheel_of_the_checkout(tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (archive,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    source = tmp_path / f"stepscore-{PROJECT['version']}"
    built = []
    for name, folder in (("checkout", ROOT), ("sdist", source)):
        (path,) = wheel.WheelBuilder(str(folder)).build(directory=str(tmp_path / name), versions=["standard"])
        with zipfile.ZipFile(path) as held:
            built.append({each: held.read(each) for each in held.namelist()})
    assert built[0] == built[1]


@pytest.mark.slow
def test_bill_of_materials_is_valid_and_the_same_each_time(tmp_path: Path) -> None:
    """By the command of `make sbom`, which validates; here of an environment with three packages."""
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed")
    venv.create(tmp_path / "environment", with_pip=False)
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    for name in NAMED:
        (metadata,) = (file for file in files_of(name) or () if file.name == "METADATA")
        folder = packages / metadata.parent.name
        folder.mkdir()
        (folder / "METADATA").write_text(metadata.read_text("utf-8"), encoding="utf-8")
    files = [tmp_path / name for name in ("first.json", "second.json")]
    for file in files:
        made = ["make", "--no-print-directory", "--dry-run", "sbom", f"SBOM={file}", f"VENV={sys.prefix}"]
        made += [f"VENV_SBOM={tmp_path}/environment"]
        lines = subprocess.run(made, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        command = lines.replace("\\\n", " ").strip().splitlines()[-1]
        assert "cyclonedx-py" in command
        seeded = os.environ | {"PYTHONHASHSEED": file.stem[0].replace("f", "1").replace("s", "2")}
        subprocess.run(shlex.split(command), cwd=ROOT, check=True, env=seeded, capture_output=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    bill = json.loads(files[0].read_bytes())
    assert bill["metadata"]["component"]["version"] == PROJECT["version"]
    assert {each["name"] for each in bill["components"]} == NAMED


def test_check_of_a_wheel_compares_every_step_of_every_record(tmp_path: Path) -> None:
    assert compared({"a": [0.5, -1.0], "b": []}, {"b": [], "a": [0.5, -1.25]}) == (0.25, 2)
    path = tmp_path / "scored.jsonl"
    path.write_text('{"stepscore": "a header"}\n{"id": "a", "step_rewards": [0.5]}\n')
    assert rewards(path) == {"a": [0.5]}


@pytest.mark.parametrize("found", [{}, {"a": [1.0]}, {"b": [1.0, 2.0]}])
def test_check_of_a_wheel_fails_where_a_reward_is_missing(found: dict[str, list[float]]) -> None:
    with pytest.raises(CheckFailed, match="records were scored"):
        compared({"a": [1.0, 2.0]}, found)


def test_check_of_a_wheel_shows_what_a_command_said(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="exit status 3: no pair"):
        run([sys.executable, "-c", "import sys; print('no pair', file=sys.stderr); sys.exit(3)"], tmp_path)
    with pytest.raises(CheckFailed, match="No such file"):
        run([str(tmp_path / "python9")], tmp_path)

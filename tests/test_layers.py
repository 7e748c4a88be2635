"""The order of the folders: each imports only what is below it, and no two files import each other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME, EXPORT = ROOT / "runtime" / "stepscore", ROOT / "export" / "stepscore_export"
PACKAGES = {"stepscore": RUNTIME, "stepscore_export": EXPORT}

# Top to bottom; the entries of one tier do not import each other.
TIERS: Mapping[str, Sequence[Sequence[str]]] = {
    "stepscore": (
        ("cli",),
        ("plots",),
        ("report", "evaluation", "selection", "bench"),
        ("server", "integrations"),
        ("jobs",),
        ("scheduling",),
        ("scorer",),
        ("engine",),
        ("memory",),
        ("batching",),
        ("artifact",),
        ("prompt",),
        ("records", "results", "rewards", "fileio", "machine"),
        ("extras",),
        ("result_view", "tabular"),
        ("errors", "enums", "system", "visible", "sizes", "forks", "bar"),
    ),
    "stepscore_export": (
        ("cli",),
        ("pipeline",),
        ("validation",),
        ("backends", "reference"),
        ("graphs",),
        ("weights", "parity"),
        ("checkpoint", "quantization"),
        ("options", "staging", "families", "fidelity", "threads"),
    ),
}


def modules() -> dict[str, Path]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(source: str, known: Iterable[str]) -> Iterator[str]:
    """The modules among `known` that a file imports, wherever in the file."""
    names = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                within = f"{node.module}.{alias.name}"
                if within in names:
                    yield within
                elif node.module in names:
                    yield node.module


def tier(module: str) -> tuple[int, str]:
    """Which tier of its package a module is in, and under which entry; a package's own face is above all."""
    package, _, rest = module.partition(".")
    entry = rest.partition(".")[0]
    if not entry:
        return -1, ""
    for index, entries in enumerate(TIERS[package]):
        if entry in entries:
            return index, entry
    raise AssertionError(f"{module} is in no tier: give its folder a place in TIERS")


def upward(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """The imports that go against the order."""
    faults = []
    for module, targets in imports.items():
        for target in targets:
            if module.partition(".")[0] != target.partition(".")[0]:
                if target.startswith("stepscore_export"):
                    faults.append(f"{module} imports {target}")
                continue
            here, there = tier(module), tier(target)
            if here != there and there[0] <= here[0]:
                faults.append(f"{module} imports {target}")
    return faults


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    known = modules()
    return {
        module: set(imported(path.read_text(encoding="utf-8"), known)) - {module}
        for module, path in known.items()
    }


def test_folders_import_only_what_is_below_them(imports: dict[str, set[str]]) -> None:
    assert upward(imports) == []


def test_no_files_import_each_other_in_a_circle(imports: dict[str, set[str]]) -> None:
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("stepscore.engine.base", "from stepscore.scorer import Scorer"),
        ("stepscore.batching.batch", "def f():\n    import stepscore.memory.fit"),
        ("stepscore.report.page", "from stepscore.selection import rules"),
        ("stepscore.scorer", "from stepscore_export.options import ExportOptions"),
        ("stepscore_export.graphs.head", "from stepscore_export.pipeline import plan"),
    ],
)
def test_upward_import_is_found(module: str, source: str) -> None:
    assert len(upward({module: imported(source, modules())})) == 1


def test_no_file_is_named_like_a_module_of_the_standard_library() -> None:
    named = {module.rpartition(".")[2] for module in modules()}
    assert named & sys.stdlib_module_names == set()


# Outside the packages

OUTSIDE = ("tests", "testing", "benchmarks", "parity_tests", "examples")
ALLOWED = {
    "testing": set(),
    "examples": {"testing"},
    "parity_tests": {"testing"},
    "benchmarks": {"testing", "parity_tests"},
    "tests": {"testing", "benchmarks"},
}


def folders_imported(folder: str) -> set[str]:
    """The folders outside the packages that the files of one import, itself left out."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found & set(OUTSIDE) - {folder}


@pytest.mark.parametrize("folder", OUTSIDE)
def test_shared_test_code_is_in_testing_and_tests_are_imported_by_nobody(folder: str) -> None:
    assert folders_imported(folder) <= ALLOWED[folder]


def test_files_of_testing_are_named_like_no_package_that_is_installed() -> None:
    """They run as scripts too: then the folder is searched before all others."""
    names = [path.stem for path in (ROOT / "testing").glob("*.py")]
    elsewhere = [path for path in sys.path if path and Path(path) != ROOT]
    assert [name for name in names if PathFinder.find_spec(name, elsewhere)] == []

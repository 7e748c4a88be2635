"""The way of a score needs nothing that only Linux has: modules, functions of `os`, files of /proc."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from testing.without_linux import MODULES, NAMES

from stepscore.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
FILES = [*RUNTIME, *sorted((ROOT / "export").rglob("*.py"))]
POSIX_MODULES = {*MODULES, "crypt", "nis", "posix", "readline", "spwd"}
POSIX_NAMES = {
    *(f"{module.__name__}.{name}" for module, names in NAMES.items() for name in names),
    *("os.O_CLOEXEC", "os.O_DIRECTORY", "os.O_NOFOLLOW", "os.O_NONBLOCK", "os.chown", "os.fork"),
    *("os.geteuid", "os.getuid", "os.mkfifo", "os.pread", "os.pwrite", "os.register_at_fork", "os.setsid"),
    *("signal.SIGHUP", "signal.SIGKILL", "signal.SIGPIPE", "signal.SIGXCPU", "signal.pthread_sigmask"),
}


def at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that an import of a module executes for certain."""
    for node in nodes:
        yield node
        if isinstance(node, ast.ClassDef | ast.With):
            yield from at_import(node.body)


def imported(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {each.name.partition(".")[0] for each in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def unguarded(source: str) -> set[str]:
    """The names of POSIX_NAMES that a file uses without asking whether they exist."""
    found = set()
    for node in ast.parse(source).body:
        text = ast.unparse(node)
        used = {ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.Attribute)}
        for name in used & POSIX_NAMES:
            module, _, attribute = name.partition(".")
            if f"hasattr({module}, '{attribute}')" not in text:
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return os.sysconf(1)", {"os.sysconf"}),
        ("def f():\n    return os.sysconf(1) if hasattr(os, 'sysconf') else None", set()),
        ("def f():\n    return os.getpid()", set()),
    ],
)
def test_a_function_that_is_not_asked_for_is_found(source: str, expected: set[str]) -> None:
    assert unguarded(source) == expected


def test_no_module_that_windows_lacks_is_imported_when_a_file_is() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in FILES
        for node in at_import(ast.parse(path.read_text("utf-8")).body)
        if (names := imported(node) & POSIX_MODULES)
    }
    assert found == {}


def test_the_runtime_asks_before_it_uses_a_function_that_windows_lacks() -> None:
    found = {path.relative_to(ROOT).as_posix(): unguarded(path.read_text("utf-8")) for path in RUNTIME}
    assert {name: names for name, names in found.items() if names} == {}


COMMANDS = {
    "score": ["score", "PAIR", "in.jsonl", "-o", "FOLDER/scored.jsonl", "--tokens"],
    "resume": ["score", "PAIR", "in.jsonl", "-o", "FOLDER/scored.jsonl", "--tokens"],
    "half": ["score", "PAIR", "in.jsonl", "--shard", "1/2", "-o", "FOLDER/0.jsonl"],
    "other half": ["score", "PAIR", "in.jsonl", "--shard", "2/2", "-o", "FOLDER/1.jsonl"],
    "merge": ["merge", "in.jsonl", "FOLDER/0.jsonl", "FOLDER/1.jsonl", "-o", "FOLDER/merged.jsonl"],
    "one problem": ["score", "PAIR", "--problem", "1 + 1?", "--step", "It is 2."],
    "dry run": ["score", "PAIR", "in.jsonl", "--dry-run", "--memory-limit", "1GB"],
    "verify": ["verify", "PAIR"],
    "doctor": ["doctor", "PAIR"],
    "bench": ["bench", "PAIR", "--repeats", "1", "--json"],
}
HIDDEN = """
import json, sys
from testing.without_linux import hide
hide()
from click.testing import CliRunner
from stepscore.cli.main import main
done = {name: CliRunner().invoke(main, arguments) for name, arguments in json.load(sys.stdin).items()}
json.dump({name: [each.exit_code, each.stdout, each.stderr] for name, each in done.items()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code, stdout and stderr of every command in a process that lacks them, and the files written."""
    folder = tmp_path_factory.mktemp("hidden")
    lines = [{"id": f"q{n}", "problem": f"{n} + 1?", "steps": ["Add.", f"{n + 1}"]} for n in range(6)]
    (folder / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN],
        input=json.dumps(commands(tiny_pair, folder)),
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, "commands": json.loads(done.stdout)}


def commands(pair: Path, folder: Path) -> dict[str, list[str]]:
    places = {"PAIR": str(pair), "in.jsonl": str(folder / "in.jsonl")}
    return {
        name: [places.get(each, each).replace("FOLDER", str(folder)) for each in arguments]
        for name, arguments in COMMANDS.items()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_succeeds_without_what_only_linux_has(answers: dict[str, Any], name: str) -> None:
    code, stdout, stderr = answers["commands"][name]
    assert code == 0, stdout + stderr


def test_rewards_do_not_depend_on_what_only_linux_has(
    answers: dict[str, Any], tiny_pair: Path, tmp_path: Path
) -> None:
    folder = answers["folder"]
    output = tmp_path / "scored.jsonl"
    arguments = commands(tiny_pair, folder)["score"]
    arguments[arguments.index("-o") + 1] = str(output)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert (folder / "scored.jsonl").read_bytes().splitlines()[1:] == output.read_bytes().splitlines()[1:]


def test_no_lock_is_left(answers: dict[str, Any]) -> None:
    assert list(answers["folder"].glob(".*")) == []


def test_what_the_system_does_not_tell_is_called_unknown(answers: dict[str, Any]) -> None:
    assert json.loads(answers["commands"]["bench"][1])["peak_mb"] is None
    assert "unknown" in answers["commands"]["doctor"][1]

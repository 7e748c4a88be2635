"""Generated pages are up to date, and do not depend on the terminal or the version of Python."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest
from benchmarks.reporting.docs_tables import TABLES

pytest.importorskip("matplotlib", reason="figures need the extra plots")
from docs.generate import ROOT, diff, generated, stale

from docs import api_page, cli_page, errors_page, schema_page
from stepscore.errors import InputError, TooLong

MARKED_PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "bench:" in path.read_text("utf-8")]


def test_generated_files_are_up_to_date() -> None:
    assert sorted(stale(ROOT, generated(ROOT))) == [], "run `make docs`"


@pytest.mark.parametrize("page", MARKED_PAGES, ids=lambda page: page.name)
def test_every_mark_names_a_table_and_is_closed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    opened = re.findall(r"<!-- bench:(\w+) -->", text)
    assert set(opened) <= set(TABLES)
    assert len(opened) == text.count("<!-- /bench -->")


def test_stale_names_files_that_differ_and_files_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "same.md").write_text("same")
    (tmp_path / "old.md").write_text("old")
    files = {"same.md": "same", "old.md": "new", "missing.md": "new"}
    assert stale(tmp_path, files) == {"old.md": "new", "missing.md": "new"}


def test_diff_is_bounded() -> None:
    lines = list(diff("page.md", "\n".join("a" * 999 for _ in range(999)), ""))
    assert lines[-1] == "...\n"
    assert sum(map(len, lines)) < 20_000


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_texts_do_not_depend_on_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cli_page.page()
    monkeypatch.setenv("COLUMNS", columns)
    assert cli_page.page() == expected


def test_the_commands_page_has_every_command() -> None:
    headings = re.findall(r"^#+ (stepscore.*)$", cli_page.page(), re.MULTILINE)
    commands = (
        *("score", "select", "evaluate processbench", "report", "bench"),
        *("export", "parity", "inspect", "verify", "doctor"),
    )
    assert {f"stepscore {command}" for command in commands} <= set(headings)


def test_the_errors_page_has_every_code_and_its_hints() -> None:
    text = errors_page.page(ROOT)
    assert f"| `{TooLong.code}` | TooLong |" in text
    assert f"Exit code {InputError.exit_code}." in text
    assert "pip install 'stepscore[torch]'" in text


def test_a_long_signature_has_one_argument_per_line() -> None:
    arguments = ", ".join(f"argument_{index}: int = {index}" for index in range(9))
    node = ast.parse(f"def long(first, *, {arguments}) -> None: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    lines = api_page.signature(node).splitlines()
    assert lines[:3] == ["def long(", "    first,", "    *,"]
    assert lines[-2:] == ["    argument_8: int = 8,", ") -> None"]


def test_schemas_do_not_depend_on_how_python_indents_docstrings() -> None:
    indented = {"$defs": {"Line": {"description": "A line.\n\n    More."}}}
    dedented = {"$defs": {"Line": {"description": "A line.\n\nMore."}}}
    assert schema_page.cleaned(indented) == schema_page.cleaned(dedented) == dedented


@pytest.mark.parametrize("name", ["api_page", "schema_page"])
def test_examples_in_docstrings_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"docs.{name}"), report=True)
    assert results.failed == 0
    assert results.attempted > 0

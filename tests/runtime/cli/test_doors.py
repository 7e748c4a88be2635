"""The doors of the command line: broken files, names, streams and disks end in a message and exit code 3."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, lines_of

import stepscore.jobs.source as source_module
from stepscore.cli.group import MOST_CHARS
from stepscore.cli.main import main
from stepscore.errors import StepscoreError
from stepscore.jobs.seal import fingerprint_path
from stepscore.scorer import Scorer
from stepscore.visible import one_line, printable, printable_json

LINE = '{"problem": "p", "steps": ["1", "2"]}\n'
LONG = "n" * 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input, what a fake scorer made of it, and no model."""
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(LINE)
    assert invoke("score", "pair", "in.jsonl", "-o", "scored.jsonl").exit_code == 0
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(done: Result, message: str) -> None:
    assert done.exit_code == 3, done.output
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.output


# Files


@pytest.mark.parametrize("command", [["score", "pair"], ["select"], ["evaluate", "processbench"]])
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here fails when it is read")
@pytest.mark.usefixtures("folder")
def test_an_input_that_cannot_be_read_is_named(command: list[str]) -> None:
    refused(invoke(*command, "/proc/self/mem"), "cannot read the input: Input/output error")


def _as_fifo(path: Path) -> None:
    os.mkfifo(path)


def _as_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [_as_fifo, _as_folder])
def test_what_stands_in_place_of_a_seal_is_not_waited_for(folder: Path, put: Any) -> None:
    place = fingerprint_path(folder / "scored.jsonl")
    place.unlink()
    put(place)
    before = (folder / "scored.jsonl").read_bytes()
    again = ("score", "pair", "in.jsonl", "-o", "scored.jsonl")
    refused(invoke(*again), f"cannot read {place.name}: it is not a regular file")
    assert invoke("report", "scored.jsonl").exit_code == 0  # the header is enough
    (folder / "scored.jsonl").write_bytes(b"".join(lines_of(before)))
    for command in (again, ("report", "scored.jsonl"), ("select", "scored.jsonl")):
        refused(invoke(*command), f"cannot read {place.name}: it is not a regular file")
    assert (folder / "scored.jsonl").read_bytes() == b"".join(lines_of(before))


@pytest.mark.parametrize("name", ["new.jsonl", "n" * 250])  # the name of its seal would be too long
def test_an_output_whose_seal_cannot_be_written_has_none(folder: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        os.mkfifo(folder / f"{name}.fingerprint.json")
    for _ in range(2):
        done = invoke("score", "pair", "in.jsonl", "-o", name, "--overwrite")
        assert done.exit_code == 0, done.output
    assert lines_of((folder / name).read_bytes()) == lines_of((folder / "scored.jsonl").read_bytes())


@pytest.mark.usefixtures("folder")
def test_a_name_as_long_as_the_file_system_allows_can_be_written() -> None:
    name = "n" * 255
    assert invoke("report", "scored.jsonl", "-o", name).exit_code == 0
    assert Path(name).read_text().startswith("<!doctype html>")
    assert {path.name for path in Path().iterdir()} == {
        *("in.jsonl", "scored.jsonl", "scored.jsonl.fingerprint.json", name)
    }


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command", [["inspect", LONG], ["verify", LONG], ["score", "pair", "in.jsonl", "-o", LONG]]
)
def test_a_name_that_is_too_long_is_an_error_in_words(command: list[str]) -> None:
    refused(invoke(*command), "File name too long")


def test_the_end_of_a_message_is_kept_behind_a_very_long_name(tmp_path: Path) -> None:
    done = invoke("inspect", str(tmp_path / ("n" * 9000)))
    refused(done, "cannot be opened: File name too long")
    assert len(done.stderr.splitlines()[0]) <= MOST_CHARS


def test_a_name_that_is_not_utf_8_is_read_and_shown_with_escapes(folder: Path) -> None:
    name = os.fsdecode(b"s\xff.jsonl")
    (folder / "scored.jsonl").rename(folder / name)
    fingerprint_path(folder / "scored.jsonl").rename(fingerprint_path(folder / name))
    done = invoke("report", name)
    assert done.exit_code == 0
    assert '"source":"s\\\\udcff.jsonl"' in done.stdout


@pytest.mark.usefixtures("folder")
def test_ids_that_no_disk_can_keep_end_the_run_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith("INSERT"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(
        source_module.sqlite3, "connect", lambda *names, **options: connect(*names, **options, factory=Full)
    )
    done = invoke("score", "pair", "in.jsonl", "-o", "other.jsonl")
    refused(done, "database or disk is full")
    assert "hint: free space" in done.stderr


@pytest.mark.usefixtures("folder")
def test_an_error_that_nobody_expected_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyError("\x1b[31mred")

    monkeypatch.setattr(Scorer, "load", fail)
    done = invoke("score", "pair", "in.jsonl")
    refused(done, "unexpected KeyError: '\\x1b[31mred' (")
    assert "test_doors.py, line " in done.stderr
    monkeypatch.setenv("STEPSCORE_TRACEBACK", "1")
    assert isinstance(invoke("score", "pair", "in.jsonl").exception, KeyError)


@pytest.mark.usefixtures("folder")
def test_records_without_labels_are_an_error_in_words() -> None:
    refused(
        invoke("evaluate", "processbench", "scored.jsonl", "--threshold", "0"),
        "no record can be evaluated; first error of 1: `label` is missing",
    )


# Standard streams

SCRIPT = "from testing.fake_scorer import FakeScorer, Scorer, main; Scorer.load = FakeScorer.load; main()"
ROOT = Path(__file__).parents[3]


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which $S is the command line with a fake scorer."""
    script = folder / "run.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"S": f"{sys.executable} {script}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


READS = {
    "score": "$S score pair in.jsonl --quiet",
    "report": "$S report scored.jsonl",
    "select": "$S select scored.jsonl",
    "help": "$S --help",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", READS.values(), ids=READS)
@pytest.mark.parametrize(("where", "why"), [(">&-", "is closed"), ("> /dev/full", "No space left on device")])
def test_output_that_is_lost_is_an_error(folder: Path, command: str, where: str, why: str) -> None:
    done = shell(folder, f"{command} {where}")
    if command == READS["help"] and where == ">&-":
        return  # click prints nothing where there is no stream
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    assert why in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_is_the_same_whatever_streams_are_closed(folder: Path, closed: str) -> None:
    """A closed descriptor is the number of the next file that is opened."""
    assert shell(folder, f"$S score pair in.jsonl -o other.jsonl {closed}").returncode == 0
    other, scored = ((folder / name).read_bytes() for name in ("other.jsonl", "scored.jsonl"))
    assert lines_of(other) == lines_of(scored)


@pytest.mark.slow
def test_standard_input_that_is_closed_is_an_error(folder: Path) -> None:
    done = shell(folder, "$S score pair - --quiet <&-")
    assert done.returncode == 3
    assert "cannot read the input: standard input is closed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["| cat > out", "> out"])
def test_standard_output_may_be_given_by_its_name(folder: Path, name: str, to: str) -> None:
    for command, expected in (
        ("$S score pair in.jsonl --quiet", '{"stepscore":{'),
        ("$S report scored.jsonl", "<!doctype html>"),
        ("$S select scored.jsonl", '{"stepscore":{'),
    ):
        assert shell(folder, f"{command} -o {name} {to}").returncode == 0
        assert (folder / "out").read_text().startswith(expected)


@pytest.mark.slow
def test_text_that_a_locale_lacks_is_shown_with_escapes(folder: Path) -> None:
    done = shell(folder, "PYTHONIOENCODING=ascii $S score pair --problem é --step '✓' --step 1")
    assert done.returncode == 0
    assert "\\u2713" in done.stdout


# Control characters

SAFE = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])


@given(st.text(max_size=80), st.integers(10, 60))
def test_a_message_is_one_printable_line_of_a_limited_length(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    assert line.replace(" ", "").isprintable() or printable(line) == line
    assert "\n" not in line


@given(st.text(SAFE, max_size=20))
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == one_line(text, 20) == text


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))))
def test_json_keeps_its_values_and_loses_its_control_characters(values: dict[str, str]) -> None:
    shown = printable_json(json.dumps(values, ensure_ascii=False).encode())
    assert json.loads(shown) == values
    assert printable(shown.decode()) == shown.decode()


HOSTILE = "a\x1b]0;title\x07\x9b31m\u202e"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command",
    [
        ["inspect", HOSTILE],
        ["score", "pair", HOSTILE],
        [HOSTILE],
        ["score", f"--{HOSTILE}"],
        [f"--{HOSTILE}"],
        ["select", "scored.jsonl", "--method", HOSTILE],
        ["report", "scored.jsonl", "-o", f"no/{HOSTILE}"],
    ],
)
def test_what_a_message_quotes_is_printable(command: list[str]) -> None:
    done = invoke(*command)
    assert done.exit_code in {2, 3}
    assert printable(done.stderr) == done.stderr


def test_ids_of_strangers_are_printable(folder: Path) -> None:
    good = answers((folder / "scored.jsonl").read_bytes())[0] | {"label": 0}
    bad = {"id": HOSTILE, "problem": "p", "steps": "no"}
    (folder / "scored.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (good, bad)))
    done = invoke("evaluate", "processbench", "scored.jsonl", "--threshold", "0")
    assert "skipped 1 records" in done.stderr
    assert printable(done.stderr) == done.stderr
    assert one_line(HOSTILE, 80) in done.stderr


def test_an_error_of_ours_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise StepscoreError("x" * 10_000 + " is wrong", hint="\x1b" * 10_000)

    monkeypatch.setattr(Scorer, "load", fail)
    done = invoke("score", "pair", "--problem", "p", "--step", "s")
    message, hint = done.stderr.splitlines()
    assert len(message) <= MOST_CHARS
    assert message.endswith(" is wrong")
    assert len(hint) <= MOST_CHARS

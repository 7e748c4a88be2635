"""What a person sees where data, progress and messages share a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from testing.scored_lines import scored, write

FAKE = Path(__file__).parents[3] / "testing" / "fake_scorer.py"
COLUMNS = 100
COMMAND = [sys.executable, str(FAKE)]


def on_terminal(command: list[str], folder: Path, *, stdout: int | None = None) -> str:
    """Run a command whose standard error, and output where none is given, are a new terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = os.environ | {"FAKE_SECONDS": "0.3", "TERM": "xterm", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        command, stdout=slave if stdout is None else stdout, stderr=slave, cwd=folder, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # Linux's end of a terminal
            part = b""
        if not part:
            break
        shown += part
    process.wait()
    os.close(master)
    return shown.decode()


def screen(text: str) -> list[str]:
    """The lines that remain on a screen of any width: a carriage return lets the next text overwrite."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        at = 0
        for char in line.replace("\x1b[A", ""):
            if char == "\r":
                at = 0
                continue
            cells[at : at + 1] = [char]
            at += 1
        lines.append("".join(cells).rstrip())
    return lines


def source(folder: Path, count: int) -> Path:
    path = folder / "in.jsonl"
    lines = (f'{{"id": {index}, "problem": "p", "steps": ["s"]}}\n' for index in range(count))
    path.write_text("".join(lines))
    return path


@pytest.mark.slow
def test_data_and_bar_share_a_terminal_without_mixing(tmp_path: Path) -> None:
    shown = on_terminal([*COMMAND, "score", "pair", str(source(tmp_path, 9))], tmp_path)
    lines = [line for line in screen(shown) if line]
    data = [line for line in lines if line.startswith("{")]
    assert len(data) == 10  # a header and nine answers, each whole
    assert all(line.endswith("}") for line in data)
    assert "9/9" in shown
    assert "record/s" not in "".join(data)
    assert lines[-1].startswith("9 records in ")


@pytest.mark.slow
def test_a_pipe_beside_a_terminal_gets_no_bar(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    shown = on_terminal([*COMMAND, "score", "pair", str(source(tmp_path, 6))], tmp_path, stdout=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as data:
        assert len(data.read().splitlines()) == 7
    assert "\r" not in shown.replace("\r\n", "\n")
    assert screen(shown)[0].startswith("6 records in ")


@pytest.mark.slow
def test_a_bar_is_shown_where_data_goes_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        shown = on_terminal(
            [*COMMAND, "score", "pair", str(source(tmp_path, 6))], tmp_path, stdout=out.fileno()
        )
    assert "6/6" in shown
    assert len((tmp_path / "out").read_bytes().splitlines()) == 7


@pytest.mark.slow
def test_report_on_a_terminal_writes_a_file_named_after_its_input(tmp_path: Path) -> None:
    path = write(tmp_path / "rewards.jsonl", scored([0.1]))
    shown = on_terminal([*COMMAND, "report", str(path)], tmp_path)
    assert "wrote rewards.html" in shown
    assert "<html" not in shown
    assert (tmp_path / "rewards.html").read_text(encoding="utf-8").startswith("<!doctype html>")

"""A line that comes alone is answered when no other waits; lines that come fast fill whole windows."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

import pytest

from stepscore.batching.prefetch import prefetch
from stepscore.batching.windows import fill_windows
from stepscore.errors import InputUnreadable, NoRecords
from stepscore.jobs.inputs.intake import HELD_LINES, Intake
from stepscore.jobs.provenance import read_header
from stepscore.jobs.source import parsed_lines
from stepscore.records import Record

SECONDS = 30
"""Limit of every wait: only a failure takes it."""


class Feed(Iterator[tuple[int, bytes]]):
    """Lines that arrive when a test says so."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._number = count(1)

    def put(self, *lines: bytes | None) -> None:
        for line in lines:
            self._lines.put(line)

    def __next__(self) -> tuple[int, bytes]:
        line = self._lines.get()
        if line is None:
            raise StopIteration
        return next(self._number), line


def windows(intake: Intake, size: int) -> Iterator[list[bytes]]:
    """Fill windows of `size` lines as a scorer does: in a thread, one ahead of the engine."""
    filled = fill_windows((line for _, line in intake), size, lambda _: 1, pauses=intake.pauses)
    return prefetch(filled, waits=intake.engine_waits)


def test_a_line_that_comes_alone_is_a_window() -> None:
    feed = Feed()
    served = windows(Intake(feed), 3)
    for line in (b"a", b"b", b"c", b"d"):
        feed.put(line)
        assert next(served) == [line]
    feed.put(None)
    assert list(served) == []


def test_lines_that_wait_fill_whole_windows() -> None:
    feed = Feed()
    feed.put(*(b"%d" % at for at in range(10)), None)
    intake = Intake(feed)
    while not intake._ended:
        threading.Event().wait(0.001)
    assert list(map(len, windows(intake, 4))) == [4, 4, 2]


def test_lines_that_come_while_the_engine_works_are_one_window() -> None:
    feed = Feed()
    intake = Intake(feed)
    served = windows(intake, 100)
    feed.put(b"a")
    assert next(served) == [b"a"]  # the engine works on it from here to the next call
    feed.put(*(b"%d" % at for at in range(50)))
    while not intake.stays_empty(0):  # all of them are in the window that is being filled
        threading.Event().wait(0.001)
    assert len(next(served)) == 50


def test_reading_ahead_is_bounded_and_ends_with_its_reader() -> None:
    taken = 0

    def lines() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for taken in count(1):
            yield taken, b"x"

    intake = Intake(lines())
    assert len(list(islice(intake, 10))) == 10
    intake.close()
    assert taken <= HELD_LINES + 11
    assert all(line == b"x" for _, line in intake)  # what was read, and then the end


def test_an_error_of_reading_comes_behind_the_lines_before_it() -> None:
    def lines() -> Iterator[tuple[int, bytes]]:
        yield 1, b"a"
        raise InputUnreadable("the disk is gone")

    intake = Intake(lines())
    assert next(intake) == (1, b"a")
    with pytest.raises(InputUnreadable, match="the disk is gone"):
        next(intake)
    assert list(intake) == []


# The first lines of a pipe


def piped(data: bytes, *, end: bool) -> tuple[BinaryIO, int]:
    read, write = os.pipe()
    os.write(write, data)
    if end:
        os.close(write)
    return os.fdopen(read, "rb", buffering=0), write


def test_a_conversation_may_begin_with_a_line_that_is_no_record() -> None:
    source, write = piped(b"{}\n", end=False)
    with source:
        lines = parsed_lines(source)
        assert getattr(next(lines).record, "code", None) == "invalid_record"
        os.write(write, b'{"problem": "p", "steps": ["s"]}\n')
        assert isinstance(next(lines).record, Record)
        os.close(write)
        assert list(lines) == []


@pytest.mark.parametrize(("data", "end"), [(b"{}\n{}\n", True), (b"<html>\n", False)])
def test_a_pipe_that_ends_without_a_record_or_is_foreign_stops_with_one_error(
    data: bytes, *, end: bool
) -> None:
    source, write = piped(data, end=end)
    with source, pytest.raises(NoRecords):
        parsed_lines(source)
    if not end:
        os.close(write)


@pytest.mark.slow
def test_a_program_holds_a_conversation_line_by_line(tiny_pair: Path) -> None:
    code = "from stepscore.cli.main import main; main()"
    command = [sys.executable, "-c", code, "score", str(tiny_pair), "-", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        for turn in range(4):
            fields = {"id": f"t{turn}", "problem": "1+1?", "steps": [f"It is {turn}."] * (turn != 2)}
            process.stdin.write(json.dumps(fields).encode() + b"\n\n")
            process.stdin.flush()
            if turn == 0:
                read_header(process.stdout.readline())
            answer = json.loads(process.stdout.readline())
            assert answer["id"] == f"t{turn}"
            assert ("error" in answer) == (turn == 2)
        process.stdin.close()
        assert process.wait(SECONDS) == 1
        watchdog.cancel()

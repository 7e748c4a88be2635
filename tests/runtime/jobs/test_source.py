"""The input of a job: a file that is not meant as it is stops with one error, before anything is written."""

from __future__ import annotations

import bz2
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.fake_scorer import FakeScorer

from stepscore.errors import DuplicateId, IdsRepeat, NoRecords
from stepscore.jobs.job import Tally, run_to_file
from stepscore.jobs.seal import fingerprint_path
from stepscore.jobs.source import FIRST_LINES, parsed_lines
from stepscore.records import Record

GOOD = b'{"problem": "p", "steps": ["s"]}\n'
RECORDS = [{"problem": "p", "steps": ["s"]}, {"problem": "q", "steps": ["t"]}]

FOREIGN: dict[str, tuple[bytes, str, str]] = {  # what it says it is, and how to convert it
    "array": (json.dumps(RECORDS).encode(), "a JSON array", "jq -c '.[]'"),
    "array over lines": (json.dumps(RECORDS, indent=1).encode(), "a JSON array", "jq -c '.[]'"),
    "object over lines": (json.dumps(RECORDS[0], indent=2).encode(), "JSON over several lines", "jq -c ."),
    "bzip2": (bz2.compress(GOOD * 50), "bzip2 data", "bzcat"),
    "ORC": (b"ORC\x0a\x0b", "ORC", "read_orc"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16 text", "iconv"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), "UTF-16 text", "iconv"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a Git LFS",
        "git lfs pull",
    ),
    "page": (b"<!DOCTYPE html>\n<html>\n", "HTML or XML", "download the file itself"),
}


def source(data: bytes, tmp_path: Path, kind: str) -> io.BufferedReader:
    """Open data as a file, or as a pipe that is closed behind it."""
    if kind == "file":
        (tmp_path / "in").write_bytes(data)
        return (tmp_path / "in").open("rb")
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return os.fdopen(read, "rb")


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize(("data", "name", "remedy"), FOREIGN.values(), ids=FOREIGN.keys())
def test_another_format_is_named_with_a_command_that_converts_it(
    tmp_path: Path, data: bytes, name: str, remedy: str, kind: str
) -> None:
    with source(data, tmp_path, kind) as lines, pytest.raises(NoRecords, match=name) as raised:
        parsed_lines(lines)
    assert remedy in (raised.value.hint or "")
    assert raised.value.exit_code == 3


CAUSES = {
    "other names": (
        b'{"q": "p", "a": ["s"]}\n',
        "`problem` is missing: give `problem`, `question`, .* 'q', 'a'",
    ),
    "no steps": (b'{"problem": "p", "solution_text": "s"}\n', "`steps` is missing: .*--steps-field"),
    "one text": (b'{"problem": "p", "solution": "a\\n\\nb"}\n', "--split"),
    "lone surrogate": (b'{"problem":"1","steps":["two"],"note":"\\ud83d"}\n', r"`note` holds .* \\ud83d"),
    "text": (b"hello\n", "not JSON"),
    "NaN": (b'{"problem": "p", "steps": ["s"], "score": NaN}\n', "`score` holds NaN"),
    "NUL bytes": (b"\0" * 4 + b"\n", "UTF-16"),
}


@pytest.mark.parametrize("count", [1, 3, FIRST_LINES, FIRST_LINES + 1])
@pytest.mark.parametrize(("line", "message"), CAUSES.values(), ids=CAUSES.keys())
def test_a_file_without_a_record_is_one_error_with_the_first_cause(
    line: bytes, message: str, count: int
) -> None:
    with pytest.raises(NoRecords, match=message):
        parsed_lines(io.BytesIO(line * count))


def test_a_file_without_a_record_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(NoRecords):
        run_to_file(FakeScorer(), io.BytesIO(b"{\n"), path, Tally())
    assert not path.exists()
    assert not fingerprint_path(path).exists()


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_one_record_among_the_first_lines_is_enough(tmp_path: Path, kind: str) -> None:
    bad = FIRST_LINES - 1
    with source(b"{\n" * bad + GOOD + b"{\n" * 500, tmp_path, kind) as lines:
        parsed = list(parsed_lines(lines))
    assert [isinstance(line.record, Record) for line in parsed] == [False] * bad + [True] + [False] * 500


def test_an_empty_file_is_no_error() -> None:
    assert list(parsed_lines(io.BytesIO(b"\n \n"))) == []


def test_of_a_pipe_no_line_is_read_behind_the_first_record() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as lines, os.fdopen(write, "wb", buffering=0) as pipe:
        pipe.write(b"{\n" + GOOD)
        parsed = parsed_lines(lines)  # would wait for a third line
        assert [isinstance(next(parsed).record, Record) for _ in range(2)] == [False, True]


# Ids


def samples(count: int, of: int) -> bytes:
    """Several samples of each problem, under the id of the problem."""
    lines = (
        {"id": index // of, "problem": f"p{index // of}", "steps": [f"{index}"]} for index in range(count)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("of", [2, 4, 8])
def test_an_id_that_is_the_problems_stops_with_one_error(of: int) -> None:
    with pytest.raises(
        IdsRepeat, match="id and the problem of an earlier line, but another solution"
    ) as raised:
        parsed_lines(io.BytesIO(samples(200, of)))
    assert "problem_id" in (raised.value.hint or "")


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_few_samples_with_one_id_are_errors_of_their_lines(tmp_path: Path, kind: str) -> None:
    distinct = b"".join(b'{"id": "x%d", "problem": "p", "steps": ["s"]}\n' % index for index in range(90))
    with source(distinct + samples(10, 10), tmp_path, kind) as lines:
        parsed = list(parsed_lines(lines))
    duplicates = [line.record for line in parsed if isinstance(line.record, DuplicateId)]
    assert len(duplicates) == 9
    assert "give every sample its own `id`" in duplicates[0].message


@pytest.mark.parametrize("change", [lambda data: data, lambda data: data.replace(b'"p', b'"q')])
def test_a_file_twice_in_one_is_no_file_of_samples(change: Callable[[bytes], bytes]) -> None:
    """Neither the same lines again nor other problems under the same ids are samples."""
    data = samples(40, 1)
    parsed = list(parsed_lines(io.BytesIO(data + change(data))))
    assert [isinstance(line.record, DuplicateId) for line in parsed] == [False] * 40 + [True] * 40

"""Random lines, field types and faults change no other record, and a run ends with the promised code."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.hypothesis_profiles import examples
from testing.outputs import THEN, answers, lines_of, stop_clock

from stepscore.batching.pace import STEADY
from stepscore.cli.main import main
from stepscore.jobs import resume
from stepscore.jobs.source import FIRST_LINES
from stepscore.records import PROBLEM_NAMES, STEPS_NAMES
from stepscore.scorer import Scorer

ONE_FOLDER = settings(examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
GOOD = [
    json.dumps({"id": f"good-{index}", "problem": "p", "steps": [str(index), "Done."], "n": index}).encode()
    for index in range(12)
]

NAMES = [*PROBLEM_NAMES, *STEPS_NAMES, "id", "messages", "error", "step_rewards", "x"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES).map(lambda fields: json.dumps(fields).encode())
RECORDS = st.fixed_dictionaries({"problem": VALUES, "steps": VALUES | st.lists(st.text())}).map(
    lambda fields: json.dumps(fields).encode()
)
DAMAGED = st.builds(
    lambda line, at, byte: line[: at % len(line)] + bytes([byte]) + line[at % len(line) + 1 :],
    st.sampled_from([line.replace(b"good-", b"other-") for line in GOOD]),
    st.integers(0, 200),
    st.integers(0, 255),
)
LINES = st.binary(max_size=60) | OBJECTS | RECORDS | DAMAGED


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    stop_clock(monkeypatch)


def invoke(*arguments: object, stdin: bytes = b"") -> Result:
    done = CliRunner().invoke(main, ["score", "pair", *map(str, arguments)], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert "error: unexpected" not in done.stderr
    return done


@ONE_FOLDER
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), LINES), max_size=10))
def test_no_line_changes_the_answer_to_another(tmp_path: Path, others: list[tuple[int, bytes]]) -> None:
    lines = list(GOOD)
    for at, line in sorted(others, key=lambda each: each[0], reverse=True):
        assume(b"good-" not in line)
        lines.insert(at, line)
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    alone = lines_of(invoke("-", stdin=b"\n".join(GOOD)).stdout_bytes)
    done = invoke(tmp_path / "in")
    found = lines_of(done.stdout_bytes)
    assert [line for line in found if b'"id":"good-' in line] == alone
    assert done.exit_code == (1 if any("error" in answer for answer in answers(done.stdout_bytes)) else 0)
    count = sum(1 for line in b"\n".join(lines).split(b"\n") if line.strip())
    assert len(found) == count


@ONE_FOLDER
@given(st.lists(LINES, max_size=5))
def test_any_file_ends_with_its_code(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    (tmp_path / "out").unlink(missing_ok=True)
    done = invoke(tmp_path / "in", "-o", tmp_path / "out")
    if done.exit_code == 3:
        assert done.stderr.startswith("error: ")
        assert not (tmp_path / "out").exists()
    else:
        errors = sum("error" in answer for answer in answers((tmp_path / "out").read_bytes()))
        assert done.exit_code == (1 if errors else 0)
        assert invoke(tmp_path / "in", "-o", tmp_path / "out").exit_code == done.exit_code


@pytest.mark.parametrize("count", [1, FIRST_LINES, 3 * FIRST_LINES])
@ONE_FOLDER
@given(line=st.binary(max_size=60))
def test_a_file_of_one_bad_line_again_and_again_is_one_error(tmp_path: Path, count: int, line: bytes) -> None:
    assume(line.strip() and b"\n" not in line)
    (tmp_path / "in").write_bytes(b"\n".join([line] * count))
    done = invoke(tmp_path / "in")
    assert (done.exit_code, done.stdout) == (3, "")


# Faults


class FullDisk(io.FileIO):
    """A file on a disk with room for some bytes more."""

    room = 0

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(bytes(data)[: self.room]) or 0
        self.room -= written
        return written


class BadDisk(io.FileIO):
    """A file that cannot be read from some byte on."""

    good = 0

    def readinto(self, buffer: Any) -> int:
        if self.tell() >= self.good:
            raise OSError(errno.EIO, "Input/output error")
        data = super().read(min(len(buffer), self.good - self.tell()))
        buffer[: len(data)] = data
        return len(data)


class Interrupted(FakeScorer):
    """A scorer that is interrupted behind some outcomes."""

    left = 0

    def stream(self, items: Any, pace: Any = STEADY) -> Any:
        for outcome in super().stream(items, pace):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield outcome


@contextmanager
def fault(kind: str, at: int) -> Iterator[None]:
    """A fault of this kind at some byte or record, as far as there is one."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "write":

            def opened(path: Path) -> io.FileIO:
                file = FullDisk(path, "ab")
                file.room = at
                return file

            patch.setattr(resume, "append_regular", opened)
        elif kind == "read":

            def read(source: str) -> AbstractContextManager[io.FileIO]:
                file = BadDisk(source, "rb")
                file.good = at
                return file

            patch.setattr("stepscore.jobs.inputs.opening.open_input", read)
        else:

            def load(pair: object, **options: Any) -> FakeScorer:
                scorer = Interrupted(window=2, pair=str(pair))
                scorer.left = at
                return scorer

            patch.setattr(Scorer, "load", load)
        yield


@ONE_FOLDER
@given(
    faults=st.lists(
        st.tuples(st.sampled_from(["write", "read", "interrupt"]), st.integers(0, 400)),
        min_size=1,
        max_size=3,
    ),
    lines=st.lists(OBJECTS, max_size=4),
)
def test_a_job_with_faults_anywhere_is_completed_to_the_same_bytes(
    tmp_path: Path, faults: list[tuple[str, int]], lines: list[bytes]
) -> None:
    source, out, whole = (tmp_path / name for name in ("in", "out", "whole"))
    for path in (out, whole):
        path.unlink(missing_ok=True)
    source.write_bytes(b"\n".join([*GOOD[:4], *lines, *GOOD[4:6]]) + b"\n")
    expected = invoke(source, "-o", whole, "--quiet").exit_code
    for kind, at in faults:
        with fault(kind, at % 8 if kind == "interrupt" else at):
            done = invoke(source, "-o", out, "--quiet")
        assert done.exit_code in {expected, {"interrupt": 130}.get(kind, 3)}
        assert not out.exists() or whole.read_bytes().startswith(out.read_bytes())
    assert invoke(source, "-o", out, "--quiet").exit_code == expected
    assert out.read_bytes() == whole.read_bytes()


@ONE_FOLDER
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_header_damaged_in_a_sealed_output_is_never_continued_unseen(
    tmp_path: Path, at: int, byte: int
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    out.unlink(missing_ok=True)
    source.write_bytes(b"\n".join(GOOD[:3]))
    assert invoke(source, "-o", out, "--limit", 2).exit_code == 0
    data = out.read_bytes()
    at %= data.index(b"\n")
    date = data.index(b'"date"')
    assume(data[at] != byte)
    assume(not date <= at < date + len(f'"date":"{THEN}"'))  # a seal is that of an output of this date
    damaged = data[:at] + bytes([byte]) + data[at + 1 :]
    out.write_bytes(damaged)
    assert invoke(source, "-o", out).exit_code in {3, 4}
    assert out.read_bytes() == damaged

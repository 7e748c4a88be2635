"""Locks of files: one of the kernel, and a second file where there is none."""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stepscore.errors import OutputUnwritable
from stepscore.fileio import append_regular, locked


def kernel_locks(_patch: pytest.MonkeyPatch) -> None:
    """Leave the system as it is."""


def system_without_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "fcntl", None)


def file_system_without_locks(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    patch.setattr(fcntl, "flock", refuse)


WITHOUT = [system_without_locks, file_system_without_locks]
SYSTEMS = [kernel_locks, *WITHOUT]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_lock_is_held_once_and_can_be_held_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    system(monkeypatch)
    path = tmp_path / "out.jsonl"
    with (
        append_regular(path) as first,
        locked(first, path, "it is locked"),
        append_regular(path) as second,
        pytest.raises(OutputUnwritable, match="it is locked"),
        locked(second, path, "it is locked"),
    ):
        pass
    with append_regular(path) as again, locked(again, path, "it is locked"):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("system", WITHOUT)
def test_a_lock_that_a_killed_run_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    system(monkeypatch)
    path = tmp_path / "out.jsonl"
    with append_regular(path) as file, locked(file, path, ""):
        (left,) = tmp_path.glob(".*")
        bytes_left = left.read_bytes()
    left.write_bytes(bytes_left)
    with append_regular(path) as file, pytest.raises(OutputUnwritable) as raised, locked(file, path, ""):
        pass
    assert str(left) in (raised.value.hint or "")
    left.unlink()
    with append_regular(path) as file, locked(file, path, ""):
        pass


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_error_under_a_lock_is_raised_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    system(monkeypatch)
    path = tmp_path / "out.jsonl"
    with (
        append_regular(path) as file,
        pytest.raises(BlockingIOError, match="a pipe"),
        locked(file, path, ""),
    ):
        raise BlockingIOError("a pipe is full")
    assert list(tmp_path.iterdir()) == [path]


def test_another_fault_of_a_lock_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "out.jsonl"
    with (
        append_regular(path) as file,
        pytest.raises(OSError, match="Input/output"),
        locked(file, path, ""),
    ):
        pass

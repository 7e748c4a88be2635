"""Facts of the machine: the memory that is free, read from files that are made up here."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from stepscore import system

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\n"
CGROUP = "sys/fs/cgroup"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the file system, as the module sees it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / CGROUP).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    monkeypatch.setattr(system, "Path", lambda name: tmp_path / name.removeprefix("/"))
    return tmp_path


def limit_to(root: Path, limit: str, *, used: int, inactive_file: int) -> None:
    """Put the process in a container with this limit, in bytes."""
    (root / CGROUP / "memory.max").write_text(f"{limit}\n")
    (root / CGROUP / "memory.current").write_text(f"{used}\n")
    (root / CGROUP / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


def test_available_bytes_are_those_linux_could_give(root: Path) -> None:
    assert system.available_bytes() == 9000 * 1024


def test_available_bytes_are_unknown_where_linux_does_not_say(root: Path) -> None:
    (root / "proc/meminfo").unlink()
    assert system.available_bytes() is None


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("5000000", 5_000_000 - 2_000_000 + 300_000), ("50000000", 9000 * 1024), ("max", 9000 * 1024)],
    ids=["tighter", "looser", "none"],
)
def test_available_bytes_keep_to_the_limit_of_a_container(root: Path, limit: str, expected: int) -> None:
    """Inactive pages of files count as free: they are given up when memory is asked for."""
    limit_to(root, limit, used=2_000_000, inactive_file=300_000)
    assert system.available_bytes() == expected


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits of open files, soft and hard, which a process may change within the hard one."""
    current = [256, 4096]

    def change(_what: int, values: tuple[int, int]) -> None:
        current[:] = values

    monkeypatch.setattr(resource, "getrlimit", lambda _what: tuple(current))
    monkeypatch.setattr(resource, "setrlimit", change)
    return current


@pytest.mark.parametrize(
    ("count", "hard", "expected"),
    [
        (100, 4096, 256),
        (300, 4096, 300),
        (9000, 4096, 4096),
        (9000, resource.RLIM_INFINITY, 9000),
        (None, 4096, 4096),
        (None, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_open_files_are_allowed_as_far_as_the_process_may(
    limits: list[int], count: int | None, hard: int, expected: int
) -> None:
    limits[1] = hard
    system.allow_open_files(count)
    assert limits == [expected, hard]


@pytest.mark.parametrize("count", [None, 5000])
def test_an_unlimited_number_of_open_files_stays_unlimited(limits: list[int], count: int | None) -> None:
    limits[:] = [resource.RLIM_INFINITY, resource.RLIM_INFINITY]
    system.allow_open_files(count)
    assert limits[0] == resource.RLIM_INFINITY


def test_a_limit_that_the_system_refuses_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    system.allow_open_files()


def test_peak_memory_is_that_of_the_process_and_unknown_where_nothing_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (system.peak_memory_bytes() or 0) > 10_000_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert system.peak_memory_bytes() is None
    system.allow_open_files()

"""A pytest plugin, `-p testing.without_linux`: hide from Python code what only Linux, or only POSIX, has.

The modules cannot be imported, functions of `os` and `signal` are gone, and files that tell of the machine
are missing. It makes no other system: paths, processes and libraries remain those of Linux.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - of the standard library, which has other code for other systems
import os
import signal
import sys

import filelock  # noqa: F401 - of the tests, which may use what is hidden
import pytest

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = {
    os: (
        *("getloadavg", "killpg", "posix_fadvise", "posix_fallocate", "sched_getaffinity"),
        *("sched_setaffinity", "statvfs", "sysconf"),
    ),
    signal: ("alarm", "setitimer"),
}
FILES = ("/proc/cpuinfo", "/proc/meminfo", "/sys/fs/cgroup/")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Hide them before any test, or what tests share, is imported."""
    hide()


def hide() -> None:
    """Hide them for the rest of the process."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in NAMES.items():
        for name in names:
            delattr(module, name)
    sys.addaudithook(_refuse_files)


def _refuse_files(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(FILES):
        raise FileNotFoundError(2, "hidden by testing/without_linux.py", arguments[0])

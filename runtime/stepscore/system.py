"""This machine: available memory, usable cores, release of freed memory."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def available_bytes() -> int | None:
    """Return the memory available on Linux, within a container's limit; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None
    )
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        stat = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").split()
        cached = int(stat[stat.index("inactive_file") + 1])  # reclaimable page cache
    except (OSError, ValueError):  # no limit: no file, or "max"
        return available
    free = limit - used + cached
    return free if available is None else min(available, free)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Return freed memory to the system (malloc_trim); glibc would retain it."""
    with suppress(AttributeError, OSError, TypeError):  # another C library or system
        ctypes.CDLL(None).malloc_trim(0)

"""This machine: available memory, usable cores, limits, release of freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
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


def peak_memory_bytes() -> int | None:
    """Return the peak resident set of this process, file-mapped pages included; None without getrusage."""
    try:
        import resource  # noqa: PLC0415 - missing on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def allow_open_files(count: int | None = None) -> None:
    """Raise this process's limit of open files to `count`, or as far as it may; no limit is lowered."""
    try:
        import resource  # noqa: PLC0415 - missing on Windows, whose limit is not raised
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if count is None or 0 <= hard < count else count
    if soft != resource.RLIM_INFINITY and not 0 <= wanted <= soft:  # RLIM_INFINITY is negative
        with suppress(ValueError, OSError):  # the system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_back_memory() -> None:
    """Return freed memory to the system (malloc_trim); glibc would retain it."""
    with suppress(AttributeError, OSError, TypeError):  # another C library or system
        ctypes.CDLL(None).malloc_trim(0)

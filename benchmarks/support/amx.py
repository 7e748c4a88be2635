"""Deny AMX to a process, to measure as on a CPU without it: Linux grants AMX tiles on request only."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, EPERM = 158, 0x1023, 1
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
DENIED = "STEPSCORE_BENCHMARK_AMX_DENIED"


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def restart_without_amx() -> None:
    """Deny AMX to this process and its children, and restart it: loaded libraries may have AMX already."""
    if DENIED not in os.environ:
        deny_amx()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {DENIED: "1"})


def deny_amx() -> None:
    """Make later requests of this process for AMX fail, so that libraries use VNNI. Cannot be undone."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise OSError("denying AMX needs a Linux seccomp filter on x86-64")
    program = [  # (operation, skip if true, skip if false, value)
        (LOAD, 0, 0, 0),  # the number of the system call
        (JUMP_IF_EQUAL, 0, 3, ARCH_PRCTL),
        (LOAD, 0, 0, 16),  # its first argument
        (JUMP_IF_EQUAL, 0, 1, ARCH_REQ_XCOMP_PERM),
        (RETURN, 0, 0, FAIL | EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter_ = _Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_)
    ):
        raise OSError(ctypes.get_errno(), "the kernel rejected the seccomp filter")

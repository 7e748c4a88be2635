"""Forks of this process: they have its memory, but none of its threads."""

from __future__ import annotations

import ctypes
import os
import weakref

_KEPT: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_forks(owner: object) -> None:
    """Never release this object in a fork of the process.

    ONNX Runtime's sessions wait for their threads when they are released. A fork has none of them, so it
    would hang where it drops the object, such as a global scorer that it replaces by one of its own.
    """
    _KEPT.add(owner)


def _keep() -> None:
    for owner in _KEPT:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)

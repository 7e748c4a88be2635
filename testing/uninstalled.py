"""Packages that look as if they were not installed."""

from __future__ import annotations

import sys

import pytest


def uninstall(patch: pytest.MonkeyPatch, package: str, *importers: str) -> None:
    """Let `import package` fail until `patch` is undone.

    Modules below `importers` have imported it already: they are imported again when they are next needed, and
    the old ones are back afterwards, also as attributes of the packages they are in.
    """
    for name in [
        name for name in sys.modules if f"{name}.".startswith(tuple(f"{each}." for each in importers))
    ]:
        parent, _, child = name.rpartition(".")
        if hasattr(sys.modules.get(parent), child):
            patch.setattr(sys.modules[parent], child, sys.modules[name])
        patch.delitem(sys.modules, name)
    patch.setitem(sys.modules, package, None)

"""Folders that are made once a test run, whichever of its processes asks first."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class SharedFolder:
    """A folder that all workers of pytest-xdist see; what is in it is read, never written to."""

    path: Path

    @classmethod
    def of_this_run(cls, factory: pytest.TempPathFactory) -> SharedFolder:
        """Return the folder of this run; a worker's own base is a folder in that of the run."""
        base = factory.getbasetemp()
        path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
        path.mkdir(exist_ok=True)
        return cls(path)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder `name`; `make` fills it if nobody has. Half of a folder is never seen."""
        place = self.path / name
        if not place.exists():
            with FileLock(f"{place}.lock"):
                if not place.exists():
                    unfinished = place.with_name(f"{name}.unfinished")
                    shutil.rmtree(unfinished, ignore_errors=True)  # of a worker that was killed
                    make(unfinished)
                    unfinished.rename(place)
        return place


def name_of(*parts: object) -> str:
    """Return a short file name that equal parts share: their reprs say all that counts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

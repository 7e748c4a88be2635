"""Pairs sealed in a target folder the quick way, and processes that die while they do it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stepscore.artifact.pair import Pair
from stepscore.errors import StepscoreError
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.staging import stage

OLD, NEW = 0.25, 0.5  # beta tells the pairs apart


def reseal(source: Path, target: Path, *, beta: float = NEW, force: bool = False) -> None:
    """Export a pair the quick way: its files are copied out of another."""
    manifest = Pair.open(source).manifest
    with stage(target, force=force) as staged:
        for unit in manifest.units:
            with os_errors_as_output_errors(target):
                (staged.folder / unit.folder).mkdir()
        for name in manifest.files:
            staged.write(name, (source / name).read_bytes())
        staged.seal(msgspec.structs.replace(manifest, beta=beta, files=staged.files))


def beta_of(target: Path) -> float | None:
    """Which pair stands at the target, every byte of it verified; None where nothing stands there."""
    if not os.path.lexists(target):
        return None
    pair = Pair.open(target)
    pair.verify()
    return pair.manifest.beta


def hidden_beside(target: Path) -> list[str]:
    """Return the names of hidden files next to the target: locks, staging folders, what is put aside."""
    return [path.name for path in target.parent.iterdir() if path.name.startswith(".")]


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process; the exit code is that of the command line, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        action()
        os._exit(0)
    except StepscoreError as error:
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def without_sync(patch: pytest.MonkeyPatch) -> None:
    """Leave out fsync: without a power failure nothing depends on it, a killed process loses nothing."""
    patch.setattr(os, "fsync", lambda _descriptor: None)

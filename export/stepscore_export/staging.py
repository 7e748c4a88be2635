"""Stages a pair and renames it at the end: the target is the old pair or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from stepscore.artifact.graph_contract import PREFIX
from stepscore.artifact.manifest import MANIFEST, TOKENIZER, UNIT_FOLDERS, FileEntry, Manifest
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore.fileio import WAIT, append_regular, locked, os_errors_as_output_errors


class Stage:
    """A folder next to the target, on the same file system, that becomes the target."""

    def __init__(self, target: Path, folder: Path, retired: Path) -> None:
        self.target = target
        self.folder = folder
        self._retired = retired
        self.files: dict[str, FileEntry] = {}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file and register its size and hash."""
        with os_errors_as_output_errors(self.target):
            (self.folder / name).write_bytes(data)
        self.files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def register(self, path: Path) -> None:
        """Register a file that was written into the stage by other means."""
        with os_errors_as_output_errors(self.target), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(self.folder).as_posix()
        self.files[name] = FileEntry(path.stat().st_size, digest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write manifest.json, which lists every other file."""
        with os_errors_as_output_errors(self.target):
            (self.folder / MANIFEST).write_bytes(manifest.encode())

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, flush everything to the disk and rename the stage to the target."""
        self.write_manifest(manifest)
        with os_errors_as_output_errors(self.target):
            for path in sorted(self.folder.rglob("*"), reverse=True):
                _sync(path)
            _sync(self.folder)
            if self.target.exists():
                os.rename(self.target, self._retired)
            os.rename(self.folder, self.target)
            _sync(self.target.parent)


@contextmanager
def stage(target: Path, *, force: bool) -> Iterator[Stage]:
    """Hold the target's lock and give an empty stage, which is removed unless it is sealed.

    Raises OutputExists where the target may not be replaced (anything but an empty folder, or a pair with
    `force`), OutputUnwritable where another export holds the lock or nothing can be written there.
    """
    target = Path(os.path.abspath(target))
    folder, retired, lock = (
        target.with_name(f".{target.name}.{end}") for end in ("stage", "retired", "lock")
    )
    with os_errors_as_output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock, target):
        with os_errors_as_output_errors(target):
            _recover(target, retired)
        _check_replaceable(target, force=force)
        with os_errors_as_output_errors(target):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            yield Stage(target, folder, retired)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _recover(target, retired)


def check_output(target: Path, *, force: bool) -> None:
    """Raise OutputExists early, before anything is read."""
    _check_replaceable(Path(os.path.abspath(target)), force=force)


def _check_replaceable(target: Path, *, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise OutputExists(f"{target} exists and is not a folder", hint="choose another --output")
    with os_errors_as_output_errors(target):
        entries = [path.name for path in target.iterdir()]
    if not entries:
        return
    if MANIFEST not in entries:
        raise OutputExists(f"{target} is not empty and is not a pair", hint="choose another --output")
    if not force:
        raise OutputExists(
            f"{target} is a pair already", hint="use --force to overwrite it, or choose another --output"
        )
    foreign = sorted({*entries} - {MANIFEST, TOKENIZER, PREFIX, *UNIT_FOLDERS})
    if foreign:
        raise OutputExists(
            f"{target} contains {foreign[0]}, which is not part of a pair and would be deleted",
            hint="move it away, or choose another --output",
        )


def _recover(target: Path, retired: Path) -> None:
    """Complete an interrupted `seal`: delete the old pair, or restore it if the new one is missing."""
    if retired.exists():
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.rename(retired, target)


@contextmanager
def _locked(lock: Path, target: Path) -> Iterator[None]:
    try:
        file = append_regular(lock)
    except OSError as error:
        raise OutputUnwritable(
            f"cannot lock {target} by {lock}: {error.strerror}",
            hint="check that its folder can be written to, and remove the lock if it is not a file",
        ) from None
    running = f"another export to {target} is running"
    with file, locked(file, lock, running):
        if not _is_the_one(file, lock):  # its holder removed it after it was opened here
            raise OutputUnwritable(running, hint=WAIT)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_the_one(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Reads a checkpoint's folder as untrusted data: names, links, sizes and JSON are checked before use."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from stepscore.errors import CheckpointCorrupt, CheckpointUnsafe, NotFound

# The largest file read whole is tokenizer.json: 11 MB for a vocabulary of 152,000.
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Regular files of one folder; anything else is rejected by name."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> CheckpointFolder:
        """Raise NotFound unless `path` is a folder."""
        if not path.is_dir():
            raise NotFound(
                f"no checkpoint folder at {path}", hint="pass a Hugging Face folder or `id@revision`"
            )
        return cls(path.resolve())

    def has(self, name: str) -> bool:
        """Return whether anything, even a broken link, has this name."""
        path = self.path / name
        return path.exists() or path.is_symlink()

    def names(self, pattern: str) -> list[str]:
        """Return the names that match a glob pattern, sorted."""
        return sorted(path.name for path in self.path.glob(pattern))

    def folders_with(self, name: str) -> list[str]:
        """Return the names of the folders inside that hold such a file, sorted."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{name}"))

    def file(self, name: str) -> Path:
        """Return the path of a regular file; CheckpointUnsafe if its name or a link leaves the folder."""
        plain = name == PurePosixPath(name).name == PureWindowsPath(name).name
        if not plain or "\0" in name or name == "..":
            raise CheckpointUnsafe(f"{name!r} is not the name of a file inside the checkpoint's folder")
        try:
            target = (self.path / name).resolve()
            if not target.is_relative_to(self._boundary()):
                raise CheckpointUnsafe(
                    f"{name} is a link that leaves the checkpoint's folder",
                    hint="copy the file into the folder",
                )
            mode = target.stat().st_mode
        except FileNotFoundError:
            raise CheckpointCorrupt(f"{name} is missing", hint="download the checkpoint again") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
            raise CheckpointCorrupt(f"{name} cannot be read: {error}") from None
        if not stat.S_ISREG(mode):
            raise CheckpointCorrupt(f"{name} is not a regular file")
        return target

    def text(self, name: str) -> str:
        """Read a small UTF-8 file whole."""
        path = self.file(name)
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise CheckpointCorrupt(f"{name} has {size} bytes, expected at most {MAX_TEXT_BYTES}")
        try:
            return path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise CheckpointCorrupt(f"{name} cannot be read as UTF-8 text: {error}") from None

    def json(self, name: str) -> dict[str, Any]:
        """Read a file that must hold one JSON object."""
        try:
            # Editors on Windows put a byte order mark in front, which is no JSON.
            value = msgspec.json.decode(self.text(name).removeprefix("\ufeff"))
        except (msgspec.DecodeError, RecursionError) as error:
            raise CheckpointCorrupt(f"{name} is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise CheckpointCorrupt(f"{name} is not a JSON object")
        return value

    def _boundary(self) -> Path:
        """Return the folder that links may not leave.

        The hub's cache links snapshots/<commit>/<name> to blobs/<hash>.
        """
        cache = self.path.parent.parent
        is_snapshot = self.path.parent.name == "snapshots" and cache.name.startswith("models--")
        return cache if is_snapshot else self.path

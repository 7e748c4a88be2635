"""Pairs of a stranger: files changed at will, under a manifest whose sizes and hashes fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from testing.pair_files import rewrite

from stepscore.artifact.manifest import MANIFEST


def rehash(pair: Path) -> None:
    """Write the manifest anew, with the sizes and hashes that the files have now."""

    def change(manifest: dict[str, Any]) -> None:
        for name in [*manifest["files"]]:
            data = (pair / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    assert (pair / MANIFEST).exists()
    rewrite(pair, change)


def change_graph(pair: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change one graph file of a pair, and hash it again."""
    model = onnx.load(pair / name, load_external_data=False)
    change(model)
    (pair / name).write_bytes(model.SerializeToString())
    rehash(pair)

"""Pairs as files: opened and verified, rewritten as an attacker would, or made without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from stepscore.artifact.manifest import MANIFEST, FileEntry, Unit
from stepscore.artifact.pair import Pair
from stepscore.enums import Format, Precision


def open_and_verify(pair: Path) -> Pair:
    """Open a pair and compare every byte with its manifest."""
    opened = Pair.open(pair)
    opened.verify()
    return opened


def rewrite(pair: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a checksum that fits, as somebody who means it would."""
    manifest = json.loads((pair / MANIFEST).read_bytes())
    change(manifest)
    manifest["checksum"] = ""
    text = json.dumps(manifest, indent=2)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    (pair / MANIFEST).write_text(text.replace('"checksum": ""', f'"checksum": "{checksum}"', 1))


def write_torch_pair(folder: Path, source: Path) -> Path:
    """Write a pair of format bitsandbytes whose models nobody loads; the weights of one are in two files.

    `source` is an ONNX pair, whose tokenizer and manifest it takes.
    """
    manifest = Pair.open(source).manifest
    contents = {"tokenizer.json": (source / "tokenizer.json").read_bytes()} | {
        name: name.encode()
        for name in (
            *("policy/config.json", "policy/model.safetensors", "reference/config.json"),
            *("reference/model-1.safetensors", "reference/model-2.safetensors"),
        )
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    stored = msgspec.structs.replace(
        manifest,
        format=Format.BITSANDBYTES,
        precision=Precision.NF4,
        target=None,
        units=tuple(Unit(unit.folder, unit.models, {}) for unit in manifest.units),
        files={
            name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()
        },
    )
    (folder / MANIFEST).write_bytes(stored.encode())
    return folder

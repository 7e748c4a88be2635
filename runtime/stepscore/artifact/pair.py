"""Open a pair on disk and verify its files against its manifest (manifest.py).

ONNX Runtime does not notice a flipped byte of a file, so the manifest records the size and SHA-256 of every
file, and a checksum of its own text. `Pair.open` compares all sizes and the hashes of small files (manifest,
graphs, tokenizer); `Pair.verify` hashes the weights too.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.graph_check import check_graphs
from stepscore.artifact.graph_contract import EMBED, HEAD_PART_COLUMNS, PREFIX, WEIGHTS, unsigned_file
from stepscore.artifact.graph_interface import stage_names, unit_graphs
from stepscore.artifact.manifest import (
    CONFIG,
    MANIFEST,
    SCHEMA_VERSION,
    TOKENIZER,
    FileEntry,
    Manifest,
    Unit,
    safetensors_files,
)
from stepscore.artifact.prefix import Prefix
from stepscore.artifact.tensor_table import TENSORS
from stepscore.enums import Coding, Exporter, Format
from stepscore.errors import (
    IntegrityMismatch,
    ManifestInvalid,
    ModelInvalid,
    NotFound,
    VersionUnsupported,
)
from stepscore.prompt.encoder import PromptEncoder

MAX_MANIFEST_BYTES = 16 << 20
SMALL_BYTES = 16 << 20
"""Files up to this size are hashed when a pair is opened; a tokenizer of 7 MB takes 20 ms."""


@dataclass(frozen=True)
class Pair:
    """An opened pair: its folder and its manifest, with all file sizes checked."""

    path: Path
    manifest: Manifest
    fingerprint: str
    """SHA-256 of manifest.json, which contains the hashes of all other files."""

    @classmethod
    def open(cls, path: str | Path) -> Pair:
        """Read the manifest and check the size of every file it lists, and the hash of small ones."""
        folder = Path(path)
        try:
            found = stat.S_ISDIR(os.stat(folder).st_mode)  # from Python 3.14 on, is_dir hides every error
        except (FileNotFoundError, NotADirectoryError, ValueError):
            found = False
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise NotFound(f"{folder} cannot be opened: {error.strerror}") from None
        if not found:
            raise NotFound(f"{folder} is not a folder", hint="give the folder that `stepscore export` wrote")
        data = _read_manifest(folder / MANIFEST)
        pair = cls(folder, _decode_manifest(data, folder / MANIFEST), hashlib.sha256(data).hexdigest())
        for name, entry in pair.manifest.files.items():
            _check_size(folder, name, entry)
            if entry.size <= SMALL_BYTES:
                _check_hash(folder, name, entry)
        return pair

    def verify(self) -> None:
        """Hash every file; raise IntegrityMismatch for the first that differs, ModelInvalid for a graph that
        no exporter writes.
        """
        for name, entry in self.manifest.files.items():
            _check_size(self.path, name, entry)
            _check_hash(self.path, name, entry)
        if self.manifest.format is Format.ONNX:
            check_graphs(self.path, self.manifest)

    def num_bytes(self) -> int:
        """Return the total size of all files, in bytes."""
        return sum(entry.size for entry in self.manifest.files.values())

    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json."""
        try:
            return (self.path / TOKENIZER).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelInvalid(
                f"{TOKENIZER} is not UTF-8 at byte {error.start}", hint="export the pair again"
            ) from None

    def prefix(self) -> Prefix | None:
        """Return the results for the tokens that every record begins with, None where the pair has none."""
        count = self.manifest.prefix_tokens
        if not count:
            return None
        return Prefix.decode((self.path / PREFIX).read_bytes(), self.manifest.architecture, count)

    def encoder(self) -> PromptEncoder:
        """Return the encoder of records for the tokenizer, template and context length of this pair."""
        limit = self.manifest.architecture.max_position_embeddings
        return PromptEncoder(self.tokenizer_json(), self.manifest.template, max_tokens=limit)


def _read_manifest(path: Path) -> bytes:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise ManifestInvalid(
            f"{path.parent} is not a pair: {MANIFEST} is missing",
            hint="run `stepscore export` again: an interrupted export writes no manifest",
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise ManifestInvalid(f"{path} is not a regular file")
    if status.st_size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(
            f"{path} has {status.st_size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestInvalid(f"{path} cannot be read: {error.strerror}") from None


def _decode_manifest(data: bytes, path: Path) -> Manifest:
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply
        raise ManifestInvalid(f"{path} cannot be read: {error}") from None
    if version != SCHEMA_VERSION:
        raise VersionUnsupported(
            f"{path} has schema version {version}, but this version of stepscore reads {SCHEMA_VERSION}",
            hint="export the pair again, or install the version of stepscore that wrote it",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"{path} cannot be read: {error}") from None
    if hashlib.sha256(data.replace(manifest.checksum.encode(), b"", 1)).hexdigest() != manifest.checksum:
        raise ManifestInvalid(
            f"{path} is damaged: it does not match its checksum",
            hint="copy the pair again from its source, or export it again; do not edit a manifest",
        )
    _check_contents(manifest, path)
    return manifest


class _Version(msgspec.Struct):
    schema_version: int


def _check_contents(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise ManifestInvalid(f"{path} lists a file outside the pair: {name!r}")
    for unit in manifest.units:
        if "/" in unit.folder or unit.folder in {"", ".", ".."}:
            raise ManifestInvalid(f"{path} lists a unit outside the pair: {unit.folder!r}")
    models = [model for unit in manifest.units for model in unit.models]
    if sorted(models) != ["policy", "reference"]:
        raise ManifestInvalid(f"{path} lists the models {models}, expected one policy and one reference")
    folders = [unit.folder for unit in manifest.units]
    if len({*folders}) < len(folders):
        raise ManifestInvalid(f"{path} lists the unit {folders[0]!r} twice")
    if not 0 < manifest.beta < math.inf:
        raise ManifestInvalid(f"{path} gives the beta {manifest.beta}, expected a positive number")
    if manifest.precision not in manifest.format.precisions:
        raise ManifestInvalid(
            f"{path}: format {manifest.format} does not support precision {manifest.precision}"
        )
    if manifest.format is Format.ONNX:
        _check_graphs(manifest, path)
    else:
        _check_folders(manifest, path)
    coded = manifest.coding is Coding.DIFFERENCE
    if coded is not (manifest.difference is not None) or coded is not (len(manifest.units) == 1):
        raise ManifestInvalid(
            f"{path} gives the coding {manifest.coding}, which does not fit its units and difference"
        )


def _check_listed(manifest: Manifest, path: Path, unit: Unit, of_unit: list[str]) -> None:
    for name in [TOKENIZER, *(f"{unit.folder}/{name}" for name in of_unit)]:
        if name not in manifest.files:
            raise ManifestInvalid(f"{path} does not list {name}")


def _check_folders(manifest: Manifest, path: Path) -> None:
    for unit in manifest.units:
        _check_listed(manifest, path, unit, [CONFIG])
        if (unit.folder,) != unit.models or not safetensors_files(manifest, unit):
            raise ManifestInvalid(f"{path} does not list separate weights of {' and '.join(unit.models)}")


def _check_graphs(manifest: Manifest, path: Path) -> None:
    if manifest.target is None:
        raise ManifestInvalid(f"{path} does not name the target of its graphs")
    generic = uses_generic_graphs(manifest)
    one_file_each = manifest.exporter is Exporter.STEPSCORE and not generic
    shape = manifest.architecture
    num_files = max(shape.num_hidden_layers, -(-shape.vocab_size // HEAD_PART_COLUMNS))
    if one_file_each and num_files > len(manifest.files):  # before all their names are spelled out
        raise ManifestInvalid(f"{path} does not list the graphs of all layers and of the whole head")
    if not 0 <= manifest.prefix_tokens < manifest.architecture.max_position_embeddings:
        raise ManifestInvalid(f"{path} gives {manifest.prefix_tokens} tokens of a prefix")
    if manifest.prefix_tokens and PREFIX not in manifest.files:
        raise ManifestInvalid(f"{path} does not list {PREFIX}")
    for unit in manifest.units:
        graphs = unit_graphs(manifest, unit)
        twice = [unsigned_file(name) for name in graphs if name != EMBED]
        own = [TENSORS] if generic else twice if manifest.has_int8_activations else []
        _check_listed(manifest, path, unit, [WEIGHTS, *graphs, *own])
        size = manifest.files[f"{unit.folder}/{WEIGHTS}"].size
        for name in stage_names(manifest):
            extent = unit.extents.get(name)
            if extent is None or not 0 <= extent.offset < extent.offset + extent.size <= size:
                raise ManifestInvalid(f"{path} has no valid extent of {WEIGHTS} for {unit.folder}/{name}")


def _check_size(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    try:
        status = os.lstat(path)
    except OSError:
        _mismatch(name, "it is missing")
    parents = [folder / parent for parent in PurePosixPath(name).parents if parent.name]
    if not stat.S_ISREG(status.st_mode) or any(parent.is_symlink() for parent in parents):
        _mismatch(name, "it is not a regular file")
    if status.st_size != entry.size:
        _mismatch(name, f"it has {status.st_size} bytes, expected {entry.size}")


def _check_hash(folder: Path, name: str, entry: FileEntry) -> None:
    try:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _mismatch(name, f"it cannot be read: {error.strerror}")
    if digest != entry.sha256:
        _mismatch(name, f"its SHA-256 is {digest[:16]}..., expected {entry.sha256[:16]}...")


def _mismatch(name: str, fault: str) -> NoReturn:
    raise IntegrityMismatch(
        f"{name} is damaged: {fault}", hint="copy the pair again from its source, or export it again"
    )

"""A pair on disk: one folder, one manifest that names every file in it.

    PAIR/
      manifest.json        sizes, hashes, sources, options, template literals
      tokenizer.json       the policy's
      <unit>/              `policy` and `reference`, or `both`: one weight file for the two of them
        weights.bin        every tensor of the unit, once
        embed.onnx         token ids -> rows
        body.onnx          rows -> hidden rows: all layers (of `both`: two streams side by side)
        layer-00.onnx ...  the same layers, one file each, over the same weights.bin
        head.onnx          hidden rows -> logits of targets, and log-sum-exps
        head-00.onnx ...   the same for a range of the vocabulary each, over the same weights.bin

A unit that optimum traced has embed, body and head, and no files of layers or parts of the head.

A unit of the format `bitsandbytes` is one model as transformers saves it: config.json and *.safetensors.

Nothing below us notices a flipped byte (ONNX Runtime loads it and computes with it), so the manifest
carries the size and the SHA-256 of every file, and a checksum of its own text. `Pair.open` compares all sizes
and the hashes of what is small (manifest, graphs, tokenizer); `Pair.verify` hashes the weights too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NoReturn

import msgspec

from stepscore.choices import (
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Target,
)
from stepscore.errors import IntegrityMismatch, ManifestInvalid, NotFound, VersionUnsupported
from stepscore.prompt import PromptEncoder, Template

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "weights.bin"
EMBED, BODY, HEAD = "embed.onnx", "body.onnx", "head.onnx"
CONFIG = "config.json"
HEAD_PART_COLUMNS = 32_768
"""Of a head with 152,064 columns and 8 bits a part is about as large as a layer."""
MAX_MANIFEST_BYTES = 16 << 20
SMALL_BYTES = 16 << 20
"""Files up to this size are hashed whenever a pair is opened: a tokenizer of 7 MB takes 20 ms."""

ModelName = Literal["policy", "reference"]
UNIT_FOLDERS = ("policy", "reference", "both")
_Positive = Annotated[int, msgspec.Meta(gt=0)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model came from: a folder's name or a repository id, and the commit of the latter."""

    name: str
    revision: str | None = None


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape both models share; Hugging Face's key names."""

    hidden_size: _Positive
    intermediate_size: _Positive
    num_hidden_layers: _Positive
    num_attention_heads: _Positive
    num_key_value_heads: _Positive
    head_dim: _Positive
    vocab_size: _Positive
    max_position_embeddings: _Positive


class Extent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes of a weight file; tensors between its ends may belong to no one else."""

    offset: int
    size: int


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set of graphs over one weight file; it computes the log-probs of one model (or of both).

    `extents` says which bytes of weights.bin each graph reads, by the name of the graph's file (of `body`
    they are those of its layers together). A unit without graphs has none.
    """

    folder: str
    models: tuple[ModelName, ...]
    extents: dict[str, Extent]


class Selftest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The staged pair against plain numpy on the source weights: worst of the two models.

    `hidden_error` is the relative RMS error of the final hidden rows, `logprob_error` the RMS error of the
    log-probs in nats, over `num_tokens` tokens. `provider` is where it ran: a pair for CUDA that was exported
    on a machine without a GPU was checked on the CPU, its weights computed with in fp32.
    """

    provider: Literal["cpu", "cuda"]
    num_tokens: int
    hidden_error: float
    logprob_error: float


class Fidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sealed pair against both checkpoints in fp32, on a text: what its user can expect.

    Errors are relative RMS: of the log-ratio per token, of the steps' rewards and of the cumulative ones
    (beta cancels). `ratio_rms` is the RMS of the true log-ratio and `logprob_rms` that of the log-probs'
    error, nats; `correlation` is Pearson's, of log-ratios; `step_signs` is the share of steps whose reward
    has the true sign, `first_errors` that of solutions with the same first error, at a threshold that half
    of them fall below. None where the true value is zero and the pair's is not.
    """

    data: str
    num_sequences: int
    num_tokens: int
    num_steps: int
    ratio_rms: float
    logprob_rms: float
    ratio_error: float | None
    step_error: float | None
    cumulative_error: float | None
    correlation: float
    step_signs: float
    first_errors: float

    def __str__(self) -> str:
        """Return what a person wants to know first."""
        error = "unknown" if self.ratio_error is None else f"{100 * self.ratio_error:.3g} %"
        return (
            f"log-ratio error {error}, same sign of {100 * self.step_signs:.1f} % of {self.num_steps} steps, "
            f"same first error in {100 * self.first_errors:.0f} % of {self.num_sequences} solutions "
            f"({self.data} text)"
        )


class Distance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """|policy - reference| / |reference|, Frobenius norms: of all matrices together and of each."""

    overall: float
    by_matrix: dict[str, float]


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a coded pair stores and uses the difference; `products` is None where activations are int8.

    `calibration` names the text whose rows the base was rounded for, None where it is the nearest code.
    """

    precision: DifferencePrecision
    activations: Activations
    products: Products | None
    calibration: str | None = None


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the runtime knows about a pair without opening another file."""

    schema_version: int
    checksum: str = ""
    """SHA-256 of manifest.json as it is with this field empty; `encode` fills it in."""
    policy: Source
    reference: Source
    architecture: Architecture
    format: Format
    exporter: Exporter
    precision: Precision
    block_size: int
    target: Target | None
    """None: the pair runs wherever its library does."""
    coding: Coding
    difference: Difference | None
    distance: Distance
    beta: float
    template: Template
    units: tuple[Unit, ...]
    selftest: Selftest | None
    fidelity: Fidelity | None
    versions: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def has_int8_activations(self) -> bool:
        """Whether matrices are multiplied in integers."""
        return self.difference is not None and self.difference.activations is Activations.INT8

    @property
    def is_merged(self) -> bool:
        """Whether base and difference are added before they are multiplied."""
        return self.difference is not None and self.difference.products is Products.MERGED

    def encode(self) -> bytes:
        """Return the bytes of manifest.json: indented, keys in a fixed order."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, checksum=""))
        text = msgspec.json.format(plain, indent=2) + b"\n"
        checksum = f'"checksum": "{hashlib.sha256(text).hexdigest()}"'
        return text.replace(b'"checksum": ""', checksum.encode(), 1)


@dataclass(frozen=True)
class Pair:
    """An opened pair: its folder and its manifest, sizes checked."""

    path: Path
    manifest: Manifest
    fingerprint: str
    """SHA-256 of manifest.json, which holds the hash of everything else."""

    @classmethod
    def open(cls, path: str | Path) -> Pair:
        """Read the manifest and check that every file it names is there with its size, small ones by hash."""
        folder = Path(path)
        if not folder.is_dir():
            raise NotFound(
                f"{folder} is not a folder", hint="a pair is the folder that `stepscore export` writes"
            )
        data = _read_manifest(folder / MANIFEST)
        pair = cls(folder, _decode_manifest(data, folder / MANIFEST), hashlib.sha256(data).hexdigest())
        for name, entry in pair.manifest.files.items():
            _check_size(folder, name, entry)
            if entry.size <= SMALL_BYTES:
                _check_hash(folder, name, entry)
        return pair

    def verify(self) -> None:
        """Hash every file; raise IntegrityMismatch naming the first that differs."""
        for name, entry in self.manifest.files.items():
            _check_size(self.path, name, entry)
            _check_hash(self.path, name, entry)

    def num_bytes(self) -> int:
        """Return the size of all files, in bytes."""
        return sum(entry.size for entry in self.manifest.files.values())

    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json."""
        return (self.path / TOKENIZER).read_text(encoding="utf-8")

    def encoder(self) -> PromptEncoder:
        """Return what turns records into token ids of these models."""
        limit = self.manifest.architecture.max_position_embeddings
        return PromptEncoder(self.tokenizer_json(), self.manifest.template, max_tokens=limit)


def graph_files(num_hidden_layers: int, vocab_size: int) -> list[str]:
    """Return the names of the graph files of one unit.

    >>> graph_files(2, 40_000)
    ['embed.onnx', 'body.onnx', 'layer-00.onnx', 'layer-01.onnx', 'head.onnx', 'head-00.onnx', 'head-01.onnx']
    """
    return [
        EMBED,
        BODY,
        *(layer_file(index) for index in range(num_hidden_layers)),
        HEAD,
        *head_files(vocab_size),
    ]


def unit_graphs(manifest: Manifest) -> list[str]:
    """Return the names of the graph files that each unit of this pair has."""
    if manifest.exporter is Exporter.OPTIMUM:
        return [EMBED, BODY, HEAD]
    return graph_files(manifest.architecture.num_hidden_layers, manifest.architecture.vocab_size)


def head_files(vocab_size: int) -> list[str]:
    """Return the names of the parts of the head, HEAD_PART_COLUMNS of the vocabulary each.

    >>> head_files(152_064)
    ['head-00.onnx', 'head-01.onnx', 'head-02.onnx', 'head-03.onnx', 'head-04.onnx']
    """
    return [f"head-{index:02d}.onnx" for index in range(-(-vocab_size // HEAD_PART_COLUMNS))]


def safetensors_files(manifest: Manifest, unit: Unit) -> list[str]:
    """Return the names of the files that a unit of transformers has its weights in."""
    return [name for name in manifest.files if PurePosixPath(name).match(f"{unit.folder}/*.safetensors")]


def layer_file(index: int) -> str:
    """Return the name of one layer's graph file."""
    return f"layer-{index:02d}.onnx"


def _read_manifest(path: Path) -> bytes:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise ManifestInvalid(
            f"{path.parent} holds no {MANIFEST}: not a pair",
            hint="an interrupted export leaves no manifest: run `stepscore export` again",
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise ManifestInvalid(f"{path} is not a regular file")
    if status.st_size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{path} has {status.st_size} bytes, more than any manifest")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestInvalid(f"{path} cannot be read: {error.strerror}") from None


def _decode_manifest(data: bytes, path: Path) -> Manifest:
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise ManifestInvalid(f"{path} cannot be read: {error}") from None
    if version != SCHEMA_VERSION:
        raise VersionUnsupported(
            f"{path} has schema version {version}, this stepscore reads {SCHEMA_VERSION}",
            hint="export the pair again, or install the stepscore that wrote it",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"{path} cannot be read: {error}") from None
    if hashlib.sha256(data.replace(manifest.checksum.encode(), b"", 1)).hexdigest() != manifest.checksum:
        raise ManifestInvalid(
            f"{path} is damaged: it does not match its own checksum",
            hint="copy the pair again from its source, or export it again; it is not made to be edited",
        )
    _check_contents(manifest, path)
    return manifest


class _Version(msgspec.Struct):
    schema_version: int


def _check_contents(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise ManifestInvalid(f"{path} names a file outside the pair: {name!r}")
    for unit in manifest.units:
        if "/" in unit.folder or unit.folder in {"", ".", ".."}:
            raise ManifestInvalid(f"{path} names a unit outside the pair: {unit.folder!r}")
    models = [model for unit in manifest.units for model in unit.models]
    if sorted(models) != ["policy", "reference"]:
        raise ManifestInvalid(f"{path} holds the models {models}, not one policy and one reference")
    if manifest.precision not in manifest.format.precisions:
        raise ManifestInvalid(f"{path}: {manifest.format} has no precision {manifest.precision}")
    if manifest.format is Format.ONNX:
        _check_graphs(manifest, path)
    else:
        _check_folders(manifest, path)


def _check_listed(manifest: Manifest, path: Path, of_unit: list[str]) -> None:
    for name in [TOKENIZER, *(f"{unit.folder}/{name}" for unit in manifest.units for name in of_unit)]:
        if name not in manifest.files:
            raise ManifestInvalid(f"{path} does not list {name}")


def _check_folders(manifest: Manifest, path: Path) -> None:
    _check_listed(manifest, path, [CONFIG])
    for unit in manifest.units:
        if (unit.folder,) != unit.models or not safetensors_files(manifest, unit):
            raise ManifestInvalid(f"{path} lists no weights of {' and '.join(unit.models)} alone")


def _check_graphs(manifest: Manifest, path: Path) -> None:
    if manifest.target is None:
        raise ManifestInvalid(f"{path} does not say which target its graphs are for")
    one_file_each = manifest.exporter is Exporter.STEPSCORE
    if one_file_each and manifest.architecture.num_hidden_layers > len(manifest.files):
        raise ManifestInvalid(f"{path} does not list the graphs of all layers")
    graphs = unit_graphs(manifest)
    _check_listed(manifest, path, [WEIGHTS, *graphs])
    for unit in manifest.units:
        size = manifest.files[f"{unit.folder}/{WEIGHTS}"].size
        for name in graphs:
            extent = unit.extents.get(name)
            if extent is None or not 0 <= extent.offset < extent.offset + extent.size <= size:
                raise ManifestInvalid(f"{path} does not say what {unit.folder}/{name} reads of {WEIGHTS}")


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
        _mismatch(name, f"it has {status.st_size} bytes, the manifest says {entry.size}")


def _check_hash(folder: Path, name: str, entry: FileEntry) -> None:
    try:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _mismatch(name, f"it cannot be read: {error.strerror}")
    if digest != entry.sha256:
        _mismatch(name, f"its SHA-256 is {digest[:16]}..., the manifest says {entry.sha256[:16]}...")


def _mismatch(name: str, fault: str) -> NoReturn:
    raise IntegrityMismatch(
        f"{name} is damaged: {fault}", hint="copy the pair again from its source, or export it again"
    )

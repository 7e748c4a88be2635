"""What manifest.json says of a pair, and the names of the files in its folder.

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
        body.u8.onnx ...   with int8 activations, each of these but embed once more: it reads the same weights
                           as unsigned numbers, for CPUs that multiply signed ones wrongly (provider.py)

A unit that optimum traced has embed, body and head, and no files of layers or parts of the head.

A unit of the format `bitsandbytes` is one model as transformers saves it: config.json and *.safetensors.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, graph_files
from stepscore.enums import (
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Target,
)
from stepscore.prompt.template import Template

SCHEMA_VERSION = 6
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"

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
    prefix_tokens: int
    """How many tokens every record begins with and the pair has results of (artifact/prefix.py); 0: none."""
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

    @property
    def dequantizes(self) -> bool:
        """Whether graphs have operators of their own that turn codes into floats, to multiply with these."""
        if self.exporter is Exporter.OPTIMUM or self.format is not Format.ONNX:
            return False
        alone = self.difference is None and self.precision in {Precision.INT8, Precision.INT4}
        return self.is_merged or (alone and self.target is Target.CPU)

    def encode(self) -> bytes:
        """Return the bytes of manifest.json: indented, keys in a fixed order."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, checksum=""))
        text = msgspec.json.format(plain, indent=2) + b"\n"
        checksum = f'"checksum": "{hashlib.sha256(text).hexdigest()}"'
        return text.replace(b'"checksum": ""', checksum.encode(), 1)


def unit_graphs(manifest: Manifest) -> list[str]:
    """Return the names of the graph files that each unit of this pair has."""
    if manifest.exporter is Exporter.OPTIMUM:
        return [EMBED, BODY, HEAD]
    return graph_files(manifest.architecture.num_hidden_layers, manifest.architecture.vocab_size)


def safetensors_files(manifest: Manifest, unit: Unit) -> list[str]:
    """Return the names of the files that a unit of transformers has its weights in."""
    return [name for name in manifest.files if PurePosixPath(name).match(f"{unit.folder}/*.safetensors")]

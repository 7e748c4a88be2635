"""Schema of manifest.json, and the layout of a pair's folder.

    PAIR/
      manifest.json        sizes, hashes, sources, options, template literals
      tokenizer.json       of the policy
      <unit>/              `policy` and `reference`, or `both`: one weight file for both models
        weights.bin        every tensor of the unit, once
        embed.onnx         token ids -> embeddings
        body.onnx          embeddings -> final hidden states: all layers (of `both`: two streams in parallel)
        layer-00.onnx ...  the same layers, one file each, over the same weights.bin
        head.onnx          final hidden states -> logits of the targets, and log-sum-exps
        head-00.onnx ...   the same, one vocabulary range each, over the same weights.bin
        body.u8.onnx ...   with int8 activations, a variant of each of these but embed that reads the same
                           weights as unsigned numbers (see engine/ort/provider_checks.py)

A unit exported by optimum has embed, body and head, without separate files of layers or of parts of the head.

A unit of stepscore's own pairs for CUDA has a handful of graphs whose weights are inputs (generic_graphs.py),
and tensors.json, which says where each tensor is in weights.bin.

A unit of the format `bitsandbytes` is one model as transformers saves it: config.json and *.safetensors.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

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

SCHEMA_VERSION = 7
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"

ModelName = Literal["policy", "reference"]
UNIT_FOLDERS = ("policy", "reference", "both")
_Positive = Annotated[int, msgspec.Meta(gt=0)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Origin of a model: the name of a folder, or a repository id with its commit."""

    name: str
    revision: str | None = None


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Shape of both models, by Hugging Face's config keys, and what their layers have.

    A trait with its default is not written: pairs without it are as they were before there was one.
    """

    hidden_size: _Positive
    intermediate_size: _Positive
    num_hidden_layers: _Positive
    num_attention_heads: _Positive
    num_key_value_heads: _Positive
    head_dim: _Positive
    vocab_size: _Positive
    max_position_embeddings: _Positive
    attention_bias: bool = True
    """Whether query, key and value have biases."""
    qk_norm: bool = False
    """Whether each head of queries and keys is RMS-normed before its rotary embedding."""


class Extent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Byte range of weights.bin used by one graph only."""

    offset: int
    size: int


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight file and its graphs, which compute the log-probs of one model or of both.

    `extents` are the byte ranges of weights.bin that each graph reads, by the name of its file; that of
    `body` covers all layers. A unit without graphs has none.
    """

    folder: str
    models: tuple[ModelName, ...]
    extents: dict[str, Extent]


class Selftest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Errors of the staged pair against a numpy forward pass on the source weights; the worse model's.

    `hidden_error` is the relative RMS error of the final hidden states, `logprob_error` the RMS error of the
    log-probs in nats, over `num_tokens` tokens. `provider` is the one used: a pair for CUDA that is exported
    on a machine without a GPU is checked on the CPU, in fp32.
    """

    provider: Literal["cpu", "cuda"]
    num_tokens: int
    hidden_error: float
    logprob_error: float


class Fidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fidelity of the pair to both checkpoints in fp32, measured on the text `data`.

    Errors are relative RMS: of the log-ratio per token, of step rewards and of cumulative rewards (beta
    cancels). `ratio_rms` is the RMS of the true log-ratio and `logprob_rms` the RMS error of the log-probs,
    in nats; `correlation` is Pearson's, of log-ratios; `step_signs` is the share of steps whose reward has
    the true sign; `first_errors` is the share of solutions with the same first error, at a threshold that
    half of the solutions fall below. An error is None where the true value is zero and the pair's is not.
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
        """Return a one-line summary."""
        error = "unknown" if self.ratio_error is None else f"{100 * self.ratio_error:.3g} %"
        return (
            f"log-ratio error {error}, same sign of {100 * self.step_signs:.1f} % of {self.num_steps} steps, "
            f"same first error in {100 * self.first_errors:.0f} % of {self.num_sequences} solutions "
            f"({self.data} text)"
        )


class Distance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """|policy - reference| / |reference| in Frobenius norms, over all matrices and for each."""

    overall: float
    by_matrix: dict[str, float]


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a difference-coded pair stores and uses the difference; `products` is None for int8 activations.

    `calibration` names the calibration data of the base (GPTQ), None where it is rounded to nearest.
    """

    precision: DifferencePrecision
    activations: Activations
    products: Products | None
    calibration: str | None = None
    rotated: bool = False
    """Whether the residual stream and the attention values are rotated."""
    unchanged: float | None = None
    """Of a lossless difference: the share of weights that are the same in both models, bit for bit."""
    bits: float | None = None
    """Of a lossless difference: bits stored for a weight of the policy."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Expected size and hash of a file."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest: all that the runtime knows about a pair without opening another file."""

    schema_version: int
    checksum: str = ""
    """SHA-256 of manifest.json with this field empty; `encode` fills it in."""
    policy: Source
    reference: Source
    architecture: Architecture
    format: Format
    exporter: Exporter
    precision: Precision
    block_size: _Positive
    target: Target | None
    """None: the pair runs on any device that its library supports."""
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
        """Return whether the pair uses W8A8 integer GEMM."""
        return self.difference is not None and self.difference.activations is Activations.INT8

    @property
    def is_merged(self) -> bool:
        """Return whether base and difference are merged into one weight before each GEMM."""
        return self.difference is not None and self.difference.products is Products.MERGED

    @property
    def dequantizes(self) -> bool:
        """Return whether the graphs dequantize weights by separate operators before a floating-point GEMM."""
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


def safetensors_files(manifest: Manifest, unit: Unit) -> list[str]:
    """Return the names of the weight files of a bitsandbytes unit."""
    return [name for name in manifest.files if PurePosixPath(name).match(f"{unit.folder}/*.safetensors")]

"""Made manifests: pairs of any shape and form, without a file behind them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import strategies as st

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, HEAD_PART_COLUMNS, head_files, layer_file
from stepscore.artifact.manifest import (
    SCHEMA_VERSION,
    TOKENIZER,
    Architecture,
    Difference,
    Distance,
    Extent,
    FileEntry,
    Manifest,
    Source,
    Unit,
)
from stepscore.enums import (
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Residency,
    Target,
)
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import Settings
from stepscore.prompt.template import Template

BILLIONS = Architecture(3584, 18944, 28, 28, 4, 128, 152_064, 32_768)
CODED = {
    "merged": Difference(DifferencePrecision.INT4, Activations.EXACT, Products.MERGED),
    "separate": Difference(DifferencePrecision.INT4, Activations.EXACT, Products.SEPARATE),
    "integer": Difference(DifferencePrecision.INT8, Activations.INT8, None),
}


def manifest(
    shape: Architecture = BILLIONS,
    *,
    precision: Precision = Precision.FP16,
    difference: Difference | None = None,
    target: Target = Target.CPU,
) -> Manifest:
    """A pair of this shape; a weight of each model has two bytes."""
    coded = difference is not None
    models = 2 if coded else 1
    layer, table = 3 * shape.hidden_size * shape.intermediate_size, shape.hidden_size * shape.vocab_size
    weights = {layer_file(index): layer for index in range(shape.num_hidden_layers)}
    weights |= {EMBED: table, HEAD: table, BODY: layer * shape.num_hidden_layers}
    heads = head_files(shape.vocab_size)
    weights |= {name: -(-table // len(heads)) for name in heads}
    extents = {name: Extent(0, 2 * models * size) for name, size in weights.items()}
    units = (Unit("policy", ("policy",), extents), Unit("reference", ("reference",), extents))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=Source("policy"),
        reference=Source("reference"),
        architecture=shape,
        format=Format.ONNX,
        exporter=Exporter.STEPSCORE,
        precision=precision,
        block_size=32,
        target=target,
        coding=Coding.DIFFERENCE if coded else Coding.INDEPENDENT,
        difference=difference,
        distance=Distance(0.01, {}),
        beta=0.001,
        template=Template("a", "b", "c"),
        prefix_tokens=0,
        units=(Unit("both", ("reference", "policy"), extents),) if coded else units,
        selftest=None,
        fidelity=None,
        versions={},
        files={TOKENIZER: FileEntry(7_000_000, "0" * 64)},
    )


LOSSLESS = Difference(DifferencePrecision.LOSSLESS, Activations.EXACT, None)
WEIGHT_BITS: Mapping[str, tuple[Precision, Difference | None, float, float]] = {
    "fp16": (Precision.FP16, None, 16, 16),
    "int8": (Precision.INT8, None, 8.5, 8.5),
    "int8-int4": (Precision.INT8, CODED["merged"], 13.5, 17.5),
    "int4-int4": (Precision.INT4, CODED["merged"], 10.2, 17.5),
    "lossless": (Precision.BF16, LOSSLESS, 20, 20),
}
"""Forms of a pair for CUDA: bits of a weight of a layer and of the head, scales included, in one unit."""


def cuda_manifest(form: str, shape: Architecture = BILLIONS) -> Manifest:
    """A pair for CUDA of this shape, whose weights have the bits that its form takes."""
    precision, difference, of_layer, of_head = WEIGHT_BITS[form]
    plain = manifest(shape, precision=precision, difference=difference, target=Target.CUDA)
    heads, columns = head_files(shape.vocab_size), range(0, shape.vocab_size, HEAD_PART_COLUMNS)
    attended = shape.num_attention_heads * shape.head_dim
    projected = attended + 2 * shape.num_key_value_heads * shape.head_dim
    layer = shape.hidden_size * (projected + attended + 3 * shape.intermediate_size)
    sizes = {layer_file(index): round(layer * of_layer / 8) for index in range(shape.num_hidden_layers)}
    for name, start in zip(heads, columns, strict=True):
        rows = min(HEAD_PART_COLUMNS, shape.vocab_size - start)
        sizes[name] = round(rows * shape.hidden_size * of_head / 8)
    extents = {name: Extent(0, size) for name, size in sizes.items()}
    units = tuple(msgspec.structs.replace(unit, extents=extents) for unit in plain.units)
    return msgspec.structs.replace(plain, units=units)


BATCHES = [2048, 1024, 512, 256, 128]

EVERY_KIND = [
    *(manifest(precision=precision) for precision in (Precision.FP32, Precision.FP16, Precision.INT8)),
    *(manifest(precision=Precision.INT8, difference=difference) for difference in CODED.values()),
]
every_kind = pytest.mark.parametrize(
    "pair", EVERY_KIND, ids=["fp32", "fp16", "int8", *(f"coded-{name}" for name in CODED)]
)

SHAPES = st.builds(
    lambda heads, width, **sizes: Architecture(
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=width,
        max_position_embeddings=4096,
        **sizes,
    ),
    heads=st.integers(1, 64),
    width=st.sampled_from([16, 64, 128]),
    intermediate_size=st.integers(1, 30_000),
    num_hidden_layers=st.integers(1, 80),
    vocab_size=st.integers(1, 200_000),
)
CUDA_MANIFESTS = st.builds(cuda_manifest, st.sampled_from(list(WEIGHT_BITS)), SHAPES)
MANIFESTS = st.builds(
    manifest,
    SHAPES,
    precision=st.sampled_from(Format.ONNX.precisions),
    difference=st.none() | st.sampled_from(list(CODED.values())),
)
RESIDENCIES = st.sampled_from([Residency.RESIDENT, Residency.ALTERNATE, Residency.STREAM])
SETTINGS = st.builds(
    Settings, RESIDENCIES, st.integers(1, 100_000), st.integers(1, 1_000_000), st.integers(1, 10_000)
)
LOADS = st.builds(PeakLoad, *[st.integers(0, 1_000_000)] * 3)


def total(pair: Manifest, residency: Residency, tokens: int) -> int:
    """What the pair needs with this residency and batch."""
    return estimate(pair, fit_settings(pair, residency=residency, max_batch_tokens=tokens)).total

"""Inputs and outputs that each graph of a pair must have, as docs/format.md describes them."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact import generic_graphs as generic
from stepscore.artifact import graph_contract as contract
from stepscore.artifact.generic_graphs import Decoder
from stepscore.artifact.manifest import Manifest, Unit
from stepscore.artifact.onnx_graph import BFLOAT16, FLOAT, FLOAT16, INT4, INT8, INT32, INT64
from stepscore.artifact.tensor_table import matrix_shapes
from stepscore.enums import Exporter

COMPUTE = frozenset({FLOAT, FLOAT16, BFLOAT16})
"""Types of activations: those of one graph have the same."""
_INDEX, _LENGTH, _PARTS = frozenset({INT64}), frozenset({INT32}), frozenset({FLOAT})
_STORED = frozenset({FLOAT16, BFLOAT16})
"""Types of stored floats, which a graph may convert."""

_FEW = (contract.FEW_QUERIES, contract.FEW_POSITIONS, contract.FEW_KEYS, contract.FEW_MASK)


@dataclass(frozen=True, slots=True)
class Expected:
    """The element types that a tensor may have, and its axes."""

    element_types: frozenset[int]
    shape: tuple[int | str, ...]


Interface = dict[str, Expected]
"""Tensors by name."""


def unit_graphs(manifest: Manifest, unit: Unit) -> list[str]:
    """Return the names of the graph files of a unit, without those over unsigned weights."""
    if generic.uses_generic_graphs(manifest):
        return generic.generic_files(manifest, unit)
    if manifest.exporter is Exporter.OPTIMUM:
        return [contract.EMBED, contract.BODY, contract.HEAD]
    shape = manifest.architecture
    return contract.graph_files(shape.num_hidden_layers, shape.vocab_size)


def stage_names(manifest: Manifest) -> list[str]:
    """Return the names whose byte ranges of weights.bin a unit gives."""
    shape = manifest.architecture
    if manifest.exporter is Exporter.OPTIMUM:
        return [contract.EMBED, contract.BODY, contract.HEAD]
    return contract.graph_files(shape.num_hidden_layers, shape.vocab_size)


def interface(
    manifest: Manifest, unit: Unit, file: str, *, keeps_rows: bool = True
) -> tuple[Interface, Interface]:
    """Return the inputs and the outputs of a graph of a unit; a graph over unsigned weights has the same.

    The graphs of older pairs do not keep rows.
    """
    inputs, outputs = _interface(manifest, unit, file)
    if keeps_rows:
        return inputs, outputs
    for name in (contract.KEPT_INDEX, *_FEW):
        inputs.pop(name, None)
    return inputs, {name: each for name, each in outputs.items() if not name.startswith(generic.KEPT)}


def _interface(manifest: Manifest, unit: Unit, file: str) -> tuple[Interface, Interface]:
    if generic.uses_generic_graphs(manifest):
        return _generic(manifest, unit, file.split(".", 1)[0])
    hidden = manifest.architecture.hidden_size
    traced = manifest.exporter is Exporter.OPTIMUM
    if file == contract.EMBED:
        return _embed(manifest, unit)
    if file.startswith("head"):
        inputs = _streams(unit, contract.HIDDEN, "m", hidden) | _indices(contract.CHUNK_ROWS, "c")
        inputs |= _indices(contract.TARGETS, "t", 2)
        tiles = _num_tiles(manifest.architecture.vocab_size, file)
        parts = _streams(unit, contract.PARTS, "t", 2, tiles)
        return inputs, {name: Expected(_PARTS, each.shape) for name, each in parts.items()}
    inputs = _streams(unit, contract.ROWS, "n", hidden) | _indices(contract.PAD_INDEX, "batch", "sequence")
    inputs |= _indices(contract.UNPAD_INDEX, "n")
    inputs[contract.SEQLENS_K] = Expected(_LENGTH, ("batch",))
    layers = range(manifest.architecture.num_hidden_layers)
    last = file in (contract.BODY, contract.layer_file(layers[-1]))
    if last:
        inputs |= _indices(contract.SCORE_INDEX, "m")
    if traced:
        return inputs, _streams(unit, contract.HIDDEN, "m", hidden)
    inputs[contract.TOTAL_SEQUENCE_LENGTH] = Expected(_LENGTH, ())
    inputs |= _indices(contract.KEPT_INDEX, "q") | _indices(contract.FEW_KEYS, "few", "keys")
    for name in (contract.FEW_QUERIES, contract.FEW_POSITIONS):
        inputs |= _indices(name, "few", "queries")
    inputs |= _floats(contract.FEW_MASK, "few", "queries", "keys")
    width = 2 * manifest.architecture.num_key_value_heads * manifest.architecture.head_dim
    kept: Interface = {}
    for layer in layers:
        if file in (contract.BODY, contract.layer_file(layer)):
            inputs |= _streams(unit, contract.given_name(layer), "g", width)
            kept |= _streams(unit, contract.kept_name(layer), "q", width)
    if last:
        inputs |= _streams(unit, contract.GIVEN_HIDDEN, "k", hidden)
        return inputs, _streams(unit, contract.HIDDEN, contract.SCORED_AXIS, hidden) | kept
    return inputs, _streams(unit, contract.NEXT_ROWS, "n", hidden) | kept


def _embed(manifest: Manifest, unit: Unit) -> tuple[Interface, Interface]:
    rows = _streams(unit, contract.ROWS, "n", manifest.architecture.hidden_size)
    return _indices(contract.INPUT_IDS, "n"), rows


def _generic(manifest: Manifest, unit: Unit, name: str) -> tuple[Interface, Interface]:
    if name == generic.EMBED_GRAPH:
        return _embed(manifest, unit)
    if name in (generic.HEAD_TILE, generic.HEAD_TILE_FP32):
        return _head_tile(manifest)
    if name in generic.layer_graphs(unit):
        return _layer(manifest, last=name.startswith(generic.LAST_LAYER))
    weight = {generic.WEIGHT: Expected(COMPUTE, ("rows", "columns"))}
    if name == generic.CAST:
        return {generic.CODES: Expected(_STORED, ("rows", "columns"))}, weight
    found = {decoder.name: decoder for decoder in generic.decoders_of(manifest)}
    return _decoder(found[name]), weight


def _head_tile(manifest: Manifest) -> tuple[Interface, Interface]:
    hidden = manifest.architecture.hidden_size
    inputs = _indices(contract.CHUNK_ROWS, "c") | _indices(contract.TARGETS, "t", 2)
    inputs |= _indices(generic.START, 2) | _indices(generic.END, 2)
    inputs |= _floats(contract.HIDDEN, "m", hidden) | _floats(generic.TILE_WEIGHT, "k", hidden)
    return inputs, {contract.PARTS: Expected(_PARTS, ("t", 2, 1))}


def _layer(manifest: Manifest, *, last: bool) -> tuple[Interface, Interface]:
    shape = manifest.architecture
    hidden, width = shape.hidden_size, 2 * shape.num_key_value_heads * shape.head_dim
    inputs = _floats(contract.ROWS, "n", hidden) | _floats(generic.GIVEN, "g", width)
    inputs |= _indices(contract.PAD_INDEX, "batch", "sequence") | _indices(contract.UNPAD_INDEX, "n")
    inputs[contract.SEQLENS_K] = Expected(_LENGTH, ("batch",))
    inputs[contract.TOTAL_SEQUENCE_LENGTH] = Expected(_LENGTH, ())
    inputs |= _indices(contract.KEPT_INDEX, "q")
    for name, size in matrix_shapes(manifest).items():
        inputs |= _floats(name, *size)
    for name, length in generic.vector_sizes(shape).items():
        inputs |= _floats(name, length)
    tables = (shape.max_position_embeddings, shape.head_dim // 2)
    inputs |= _floats(generic.ROTARY_COS, *tables) | _floats(generic.ROTARY_SIN, *tables)
    kept = _floats(generic.KEPT, "q", width)
    if not last:
        return inputs, _floats(contract.NEXT_ROWS, "n", hidden) | kept
    inputs |= _indices(contract.SCORE_INDEX, "m") | _floats(contract.GIVEN_HIDDEN, "k", hidden)
    inputs |= _floats(generic.FINAL_NORM, hidden)
    return inputs, _floats(contract.HIDDEN, contract.SCORED_AXIS, hidden) | kept


def _decoder(decoder: Decoder) -> Interface:
    whole = decoder.bits == generic.TABLE_BITS
    codes = (frozenset({INT8}), ("b", decoder.block_size)) if whole else (frozenset({INT4}), ("rows", "k"))
    blocks = ("b",) if whole else ("rows", "b")
    inputs = {generic.CODES: Expected(*codes), generic.SCALES: Expected(_STORED, blocks)}
    if decoder.zeros:
        inputs[generic.ZEROS] = Expected(frozenset({INT4}), ("rows", "b"))
    if decoder.add:
        inputs[generic.BASE] = Expected(COMPUTE, ("rows", "columns"))
    if decoder.padded:
        inputs |= _indices(generic.NUM_COLUMNS, 1)
        inputs |= _indices(generic.NUM_ROWS, 1) if whole else {}
    return inputs


def _floats(name: str, *shape: int | str) -> Interface:
    return {name: Expected(COMPUTE, shape)}


def _indices(name: str, *shape: int | str) -> Interface:
    return {name: Expected(_INDEX, shape)}


def _streams(unit: Unit, name: str, *shape: int | str) -> Interface:
    return {each: Expected(COMPUTE, shape) for each in contract.stream_names(name, unit.models)}


def _num_tiles(vocab_size: int, file: str) -> int:
    """Return the vocabulary tiles of the head, or of one part of it."""
    columns = vocab_size
    if file != contract.HEAD:
        before = contract.head_files(vocab_size).index(file) * contract.HEAD_PART_COLUMNS
        columns = min(vocab_size - before, contract.HEAD_PART_COLUMNS)
    return -(-columns // contract.TILE)

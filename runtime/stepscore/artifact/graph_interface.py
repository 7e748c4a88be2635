"""Inputs and outputs that each graph of a pair must have, as docs/format.md describes them."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact import graph_contract as contract
from stepscore.artifact.manifest import Manifest, Unit
from stepscore.artifact.onnx_graph import BFLOAT16, FLOAT, FLOAT16, INT32, INT64
from stepscore.enums import Exporter

COMPUTE = frozenset({FLOAT, FLOAT16, BFLOAT16})
"""Types of activations: those of one graph have the same."""
_INDEX, _LENGTH, _PARTS = frozenset({INT64}), frozenset({INT32}), frozenset({FLOAT})


@dataclass(frozen=True, slots=True)
class Expected:
    """The element types that a tensor may have, and its axes."""

    element_types: frozenset[int]
    shape: tuple[int | str, ...]


Interface = dict[str, Expected]
"""Tensors by name."""


def interface(manifest: Manifest, unit: Unit, file: str) -> tuple[Interface, Interface]:
    """Return the inputs and the outputs of a graph of a unit; a graph over unsigned weights has the same."""
    hidden = manifest.architecture.hidden_size
    traced = manifest.exporter is Exporter.OPTIMUM
    if file == contract.EMBED:
        return _indices(contract.INPUT_IDS, "n"), _streams(unit, contract.ROWS, "n", hidden)
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
    width = 2 * manifest.architecture.num_key_value_heads * manifest.architecture.head_dim
    for layer in layers:
        if file in (contract.BODY, contract.layer_file(layer)):
            inputs |= _streams(unit, contract.given_name(layer), "g", width)
    if last:
        inputs |= _streams(unit, contract.GIVEN_HIDDEN, "k", hidden)
        return inputs, _streams(unit, contract.HIDDEN, contract.SCORED_AXIS, hidden)
    return inputs, _streams(unit, contract.NEXT_ROWS, "n", hidden)


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

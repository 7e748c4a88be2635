"""The backend of our graphs: packed rows, one file a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import onnx_ir as ir

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, WEIGHTS, layer_file, unsigned_file
from stepscore.enums import Coding
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.backends.optimum import TracedWeights, traced_graphs
from stepscore_export.backends.optimum_trace import trace
from stepscore_export.checkpoint.checkpoint import Members
from stepscore_export.graphs.decoder import body_graph, embed_graph, layer_graph
from stepscore_export.graphs.head import head_graph
from stepscore_export.graphs.shape import Shape
from stepscore_export.options import ExportOptions
from stepscore_export.staging import Stage
from stepscore_export.weights.layout import UnitWeights, head_parts
from stepscore_export.weights.weight_file import WeightFile

Weights = UnitWeights | TracedWeights


GRAPHS_HELD = 16
"""So many graphs are written before they are let go of: a search for cycles takes a while."""


def unit_members(checkpoints: Members, options: ExportOptions) -> dict[str, Members]:
    """Return which models share a weight file, by its folder."""
    if options.coding is Coding.DIFFERENCE:
        return {"both": {name: checkpoints[name] for name in ("reference", "policy")}}
    return {name: {name: checkpoint} for name, checkpoint in checkpoints.items()}


def write_weights(staged: Stage, name: str, store: Callable[[WeightFile], Weights]) -> Weights:
    """Write weights.bin of one unit through `store`, and add it to the files of the stage."""
    folder = staged.folder / name
    with os_errors_as_output_errors(folder):
        folder.mkdir()
    with WeightFile(folder / WEIGHTS) as file:
        weights = store(file)
        staged.files[f"{name}/{WEIGHTS}"] = file.close()
    return weights


def graphs_of(
    members: Members, weights: Weights, shape: Shape, *, integers: bool
) -> Iterator[tuple[str, ir.Model]]:
    """Give the graphs of a unit by the names of their files; `integers`: those of unsigned weights too."""
    if isinstance(weights, TracedWeights):
        (checkpoint,) = members.values()
        yield from traced_graphs(weights, trace(checkpoint), shape)
        return
    yield EMBED, embed_graph(weights.embedding, shape, weights.rotation)
    yield from _product_graphs(weights, shape)
    if integers:
        for name, model in _product_graphs(weights, replace(shape, unsigned=True)):
            yield unsigned_file(name), model


def _product_graphs(weights: UnitWeights, shape: Shape) -> Iterator[tuple[str, ir.Model]]:
    yield BODY, body_graph(weights, shape)
    last = len(weights.layers) - 1
    for index, layer in enumerate(weights.layers):
        norm = weights.norm if index == last else None
        yield layer_file(index), layer_graph(layer, weights.rotary, shape, index, norm)
    yield HEAD, head_graph(weights.head, shape)
    for part, tiles in head_parts(weights.head).items():
        yield part, head_graph(tiles, shape)

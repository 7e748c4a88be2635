"""The graphs: which operators, over which bytes, in which types."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from testing.checkpoints import TINY, tied, write_checkpoint
from testing.forms import every_precision
from testing.graphs import (
    LAYERS,
    NAMES,
    assert_the_body_is_its_layers,
    external,
    load,
    nodes,
    operators,
    without_few_queries,
)
from testing.pairs import PairOf, export_unmeasured

from stepscore.artifact.graph_contract import TILE
from stepscore.enums import Coding, Precision
from stepscore_export.options import ExportOptions

# Bytes


@every_precision
@pytest.mark.parametrize("name", NAMES)
def test_graph_files_hold_no_weights(pair_of: PairOf, precision: Precision, name: str) -> None:
    """Beside names into the weight file there are a few constants: axes, shapes, a zero point."""
    pair = pair_of(precision)
    inside = [
        tensor
        for tensor in load(pair, name).graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    ]
    assert all(np.prod(tensor.dims) <= 5 for tensor in inside)
    assert (pair / "policy" / name).stat().st_size < 24_000


@every_precision
@pytest.mark.parametrize("name", NAMES)
def test_external_data_is_inside_the_weight_file(pair_of: PairOf, precision: Precision, name: str) -> None:
    pair = pair_of(precision)
    size = (pair / "policy" / "weights.bin").stat().st_size
    for place in external(load(pair, name)).values():
        assert place["location"] == "weights.bin"
        assert int(place["offset"]) + int(place["length"]) <= size


@every_precision
def test_body_and_layers_name_the_same_bytes(pair_of: PairOf, precision: Precision) -> None:
    pair = pair_of(precision)
    in_layers: dict[str, dict[str, str]] = {}
    for name in NAMES:
        if name.startswith("layer"):
            in_layers |= external(load(pair, name))
    assert external(load(pair, "body.onnx")) == in_layers


@every_precision
def test_tensors_start_at_pages(pair_of: PairOf, precision: Precision) -> None:
    """ONNX Runtime maps them from the file instead of reading them."""
    pair = pair_of(precision)
    for name in NAMES:
        assert all(int(place["offset"]) % 4096 == 0 for place in external(load(pair, name)).values())


@pytest.mark.slow
@every_precision
def test_a_tied_model_stores_its_table_once(tmp_path: Path, precision: Precision) -> None:
    policy = write_checkpoint(tmp_path / "policy", tied(), seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", tied(), seed=1)
    pair = export_unmeasured(
        policy, reference, tmp_path / "pair", ExportOptions(precision, coding=Coding.INDEPENDENT)
    ).path
    assert external(load(pair, "embed.onnx")) == external(load(pair, "head.onnx"))


@pytest.mark.parametrize("end", ["embed.onnx", "head.onnx"])
def test_an_untied_model_has_two_tables(tiny_pair: Path, end: str) -> None:
    other = {"embed.onnx": "head.onnx", "head.onnx": "embed.onnx"}[end]
    offsets = {place["offset"] for place in external(load(tiny_pair, end)).values()}
    assert offsets.isdisjoint(place["offset"] for place in external(load(tiny_pair, other)).values())


# Operators: one exact snapshot, and what must hold of any graph

FLOAT_LAYER = Counter(
    {
        "Gemm": 5,
        "Add": 1,
        "Gather": 3,  # the padded view and back, kept rows
        "Slice": 2,  # keys and values of kept rows, and none of their rows
        "If": 1,
        "GroupQueryAttention": 2,  # one of them is run
        "Reshape": 1,
        "SkipSimplifiedLayerNormalization": 1,
        "SimplifiedLayerNormalization": 1,
        "QuickGelu": 1,
        "Mul": 1,
    }
)


def test_float_body_has_exactly_these_operators(tiny_pair: Path) -> None:
    expected = Counter({name: LAYERS * count for name, count in FLOAT_LAYER.items()})
    expected["Add"] += LAYERS - 1  # between two layers
    expected["SkipSimplifiedLayerNormalization"] += 1  # before the head
    expected["Gather"] += 2  # the last layer drops the rows that are not scored
    expected["LessOrEqual"] = 1  # of the length, once for all layers
    expected["Pad"] = LAYERS  # given keys and values, as rows of queries, keys and values
    expected["Concat"] = LAYERS + 1  # given rows in front of computed ones
    assert operators(without_few_queries(load(tiny_pair, "body.onnx"))) == expected


@every_precision
def test_the_body_is_its_layers_operator_by_operator(pair_of: PairOf, precision: Precision) -> None:
    assert_the_body_is_its_layers(pair_of(precision), "policy")


def test_int4_body_has_matmulnbits_for_every_gemm(pair_of: PairOf) -> None:
    floats, blocks = (
        operators(load(pair_of(each), "body.onnx")) for each in (Precision.FP32, Precision.INT4)
    )
    assert (blocks["Gemm"], blocks["MatMulNBits"]) == (0, floats["Gemm"])


def test_int8_body_dequantizes_every_matrix(pair_of: PairOf) -> None:
    found = operators(load(pair_of(Precision.INT8), "body.onnx"))
    assert found["GatherBlockQuantized"] == found["Gemm"] == 5 * LAYERS


def test_embedding_is_one_lookup(tiny_pair: Path) -> None:
    assert operators(load(tiny_pair, "embed.onnx"))["Gather"] == 1


@pytest.mark.parametrize("name", ["body.onnx", "layer-00.onnx"])
def test_matmulnbits_keeps_exact_activations(pair_of: PairOf, name: str) -> None:
    levels = [
        attribute.i
        for node in load(pair_of(Precision.INT4), name).graph.node
        for attribute in node.attribute
        if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level"
    ]
    assert levels
    assert set(levels) == {1}


def test_four_bit_models_have_eight_bit_ends(pair_of: PairOf) -> None:
    head = load(pair_of(Precision.INT4), "head.onnx").graph
    (node,) = (node for node in head.node if node.op_type == "GatherBlockQuantized")
    assert {attribute.name: attribute.i for attribute in node.attribute}["bits"] == 8


@every_precision
@pytest.mark.parametrize("name", NAMES)
def test_every_initializer_is_read(pair_of: PairOf, precision: Precision, name: str) -> None:
    graph = load(pair_of(precision), name).graph
    read = {value for node in nodes(graph) for value in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


# Types


@every_precision
def test_cpu_graphs_exchange_fp32_activations(pair_of: PairOf, precision: Precision) -> None:
    graph = load(pair_of(precision), "body.onnx").graph
    assert {value.type.tensor_type.elem_type for value in [graph.input[0], *graph.output]} == {
        onnx.TensorProto.FLOAT
    }


@every_precision
def test_head_returns_fp32_logprobs(pair_of: PairOf, precision: Precision) -> None:
    graph = load(pair_of(precision), "head.onnx").graph
    assert [value.type.tensor_type.elem_type for value in graph.output] == [onnx.TensorProto.FLOAT]


def test_head_has_one_gemm_and_one_softmax_per_vocabulary_tile(tmp_path: Path) -> None:
    shape = replace(TINY, vocab_size=2 * TILE + 5)
    policy = write_checkpoint(tmp_path / "policy", shape, seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", shape, seed=1)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32)).path
    found = operators(load(pair, "head.onnx"))
    assert found["Gemm"] == 3
    assert found["LogSoftmax"] == 3


# Tools


@every_precision
@pytest.mark.parametrize("name", ["embed.onnx", "head.onnx"])
def test_the_onnx_checker_accepts_the_ends(pair_of: PairOf, precision: Precision, name: str) -> None:
    """It does not know ONNX Runtime's own norms: body and layers are checked by being run."""
    onnx.checker.check_model(pair_of(precision) / "policy" / name)


def test_attention_waits_for_the_rows_that_are_kept(pair_of: PairOf) -> None:
    """Else ONNX Runtime gathers them last, and holds q, k and v of every layer until then."""
    graph = load(pair_of.form(ExportOptions(Precision.FP32)), "body.onnx", "policy").graph
    gathered = {
        node.output[0] for node in graph.node if node.op_type == "Gather" and "kept_index" in node.input
    }
    waits = {node.output[0]: node.input[0] for node in graph.node if "kept_none" in node.input}
    joined = {name for node in graph.node if node.op_type == "Concat" for name in node.input}
    assert gathered == {waits[name] for name in joined & set(waits)}
    assert len(gathered) == LAYERS

"""The graphs of a coded pair: which operators, over which bytes, at how many bits."""

from __future__ import annotations

import math
from collections import Counter

import onnx
import pytest
from testing.forms import (
    INTEGER,
    MERGED,
    SEPARATE,
    TWO_BITS,
    every_form,
    name_of,
)
from testing.graphs import (
    LAYERS,
    NAMES,
    assert_the_body_is_its_layers,
    external,
    load,
    operators,
    without_few_queries,
)
from testing.pairs import PairOf

from stepscore.artifact.pair import Pair
from stepscore.enums import Precision, Products
from stepscore_export.options import ExportOptions

MATRICES = 5 * LAYERS  # qkv, output, gate, up, down


# Operators: two exact snapshots, and what must hold of any graph

STREAMS = Counter(  # of a body: what two models need for themselves, whatever the form
    {
        "Concat": 2 * LAYERS + 2,  # given rows in front of computed ones: keys and values, hidden states
        "Pad": 2 * LAYERS,
        "Gather": 6 * LAYERS + 3,  # padded view and back, kept rows; the last drops rows, one index for both
        "Slice": 4 * LAYERS,  # keys and values of kept rows, and none of their rows
        "LessOrEqual": 1,  # of the length, once for all
        "If": 2 * LAYERS,
        "GroupQueryAttention": 4 * LAYERS,  # half of them are run
        "Reshape": 2 * LAYERS,
        "SimplifiedLayerNormalization": 2 * LAYERS,
        "SkipSimplifiedLayerNormalization": 2 * LAYERS + 2,
        "QuickGelu": 2 * LAYERS,
        "Mul": 2 * LAYERS,
        "Add": 2 * LAYERS + 2 * (LAYERS - 1),  # biases, and between two layers
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*MERGED.values(), TWO_BITS[Products.MERGED]], ids=name_of)
def test_merged_body_adds_the_parts_and_has_two_gemms_per_matrix(
    pair_of: PairOf, form: ExportOptions
) -> None:
    found = operators(without_few_queries(load(pair_of.form(form), "body.onnx", "both")))
    matrix = Counter({"Range": 2, "GatherBlockQuantized": 2, "Add": 1, "Gemm": 2})
    assert found == STREAMS + times(MATRICES, matrix)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*SEPARATE.values(), TWO_BITS[Products.SEPARATE]], ids=name_of)
def test_separate_body_has_three_matmuls_per_matrix(pair_of: PairOf, form: ExportOptions) -> None:
    found = operators(load(pair_of.form(form), "body.onnx", "both"))
    assert (found["Gemm"], found["MatMulNBits"]) == (0, 3 * MATRICES)


def times(factor: int, counts: Counter[str]) -> Counter[str]:
    return Counter({name: factor * count for name, count in counts.items()})


ROUNDED = (  # the difference; scales per token of reference and difference, and their sum; the codes of three
    times(2, Counter({"ReduceMax": 1, "ReduceMin": 1, "Neg": 1, "Max": 1, "Mul": 1}))
    + times(3, Counter({"Squeeze": 1, "Shape": 1, "Expand": 1, "QuantizeLinear": 1}))
    + Counter({"Sub": 1, "Add": 1})
)
REST = Counter({"DequantizeLinear": 1, "Sub": 1, "Mul": 1, "QuantizeLinear": 1})  # what the codes leave


def test_int8_activations_body_multiplies_integers_only(pair_of: PairOf) -> None:
    """Gate and up share their activations, and up is not multiplied by the scales of tokens."""
    found = operators(without_few_queries(load(pair_of.form(INTEGER), "body.onnx", "both")))
    gemms = Counter({"MatMulIntegerToFloat": 3})
    gate = gemms + Counter({"Mul": 3, "Add": 2})
    up = gemms + Counter({"Div": 2, "Mul": 2, "Add": 2})
    high_precision = gate + REST + Counter({"MatMulIntegerToFloat": 1, "Add": 1})
    unit_of_down = Counter({"Mul": 3})
    layer = gate + up + times(3, high_precision) + times(4, ROUNDED) + unit_of_down
    assert found == STREAMS + times(LAYERS, layer)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "embed.onnx"])
def test_every_block_product_keeps_exact_activations(
    pair_of: PairOf, precision: Precision, name: str
) -> None:
    pair = pair_of.form(SEPARATE[precision])
    products = [node for node in load(pair, name, "both").graph.node if node.op_type == "MatMulNBits"]
    levels = [each.i for node in products for each in node.attribute if each.name == "accuracy_level"]
    assert products
    assert levels == [1] * len(products)


@every_form
def test_the_body_is_its_layers_operator_by_operator(pair_of: PairOf, form: ExportOptions) -> None:
    assert_the_body_is_its_layers(pair_of.form(form), "both")


# Bits

EIGHT_BITS = ("qkv", "output", "head")


@pytest.mark.parametrize(
    ("form", "operator", "codes"),
    [
        (SEPARATE[Precision.INT4], "MatMulNBits", 1),
        (MERGED[Precision.INT4], "GatherBlockQuantized", 0),
    ],
    ids=["separate", "merged"],
)
def test_four_bit_pairs_have_eight_bit_attention_and_head(
    pair_of: PairOf, form: ExportOptions, operator: str, codes: int
) -> None:
    pair = pair_of.form(form)
    found = {}
    for name in ("body.onnx", "head.onnx"):
        for node in load(pair, name, "both").graph.node:
            if node.op_type == operator:
                found[node.input[codes]] = next(each.i for each in node.attribute if each.name == "bits")
    assert found == {
        f"{name}.{part}.codes": bits
        for name in matrices()
        for part, bits in zip(("base", "difference"), expected_bits(name), strict=True)
    }


def matrices() -> list[str]:
    names = ("qkv", "output", "gate", "up", "down")
    return [*(f"layers.{index}.{name}" for index in range(LAYERS) for name in names), "head.0"]


def expected_bits(name: str) -> tuple[int, int]:
    """Of base and difference under int4."""
    return 8 if any(part in name for part in EIGHT_BITS) else 4, 8 if "head" in name else 4


# Bytes


@every_form
def test_a_coded_pair_is_one_unit_of_both_models(pair_of: PairOf, form: ExportOptions) -> None:
    pair = pair_of.form(form)
    units = [(unit.folder, unit.models) for unit in Pair.open(pair).manifest.units]
    assert units == [("both", ("reference", "policy"))]
    found = [path.relative_to(pair).as_posix() for path in pair.rglob("weights.bin")]
    assert found == ["both/weights.bin"]


@every_form
def test_body_and_layers_name_the_same_bytes(pair_of: PairOf, form: ExportOptions) -> None:
    pair = pair_of.form(form)
    in_layers: dict[str, dict[str, str]] = {}
    for name in NAMES:
        if name.startswith("layer"):
            in_layers |= external(load(pair, name, "both"))
    assert external(load(pair, "body.onnx", "both")) == in_layers


@every_form
def test_weight_file_stores_every_tensor_once_without_gaps(pair_of: PairOf, form: ExportOptions) -> None:
    """Without a gap beyond the next page, and nothing twice: there is one base."""
    pair = pair_of.form(form)
    places: dict[str, dict[str, str]] = {}
    for name in NAMES:
        places |= external(load(pair, name, "both"))
    spans = sorted((int(place["offset"]), int(place["length"])) for place in places.values())
    ends = [0, *(offset + length for offset, length in spans)]
    assert [offset for offset, _ in spans] == [-(-end // 4096) * 4096 for end in ends[:-1]]
    assert ends[-1] == (pair / "both" / "weights.bin").stat().st_size
    for part in ("base", "difference"):
        assert sorted(name for name in places if name.endswith(f".{part}.codes")) == sorted(
            f"{name}.{part}.codes" for name in matrices()
        )


@every_form
@pytest.mark.parametrize("name", NAMES)
def test_graph_files_hold_no_weights(pair_of: PairOf, form: ExportOptions, name: str) -> None:
    path = pair_of.form(form) / "both" / name
    graph = load(path.parents[1], name, "both").graph
    inside = [each for each in graph.initializer if each.data_location != onnx.TensorProto.EXTERNAL]
    assert all(math.prod(each.dims) <= 5 for each in inside)
    assert path.stat().st_size < 70_000

"""The graphs of pairs for CUDA: no weights inside, types of both variants, operators of layer and head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from testing.checkpoints import TINY
from testing.cuda_forms import CUDA_FORMS, a_cuda_form_of_each_kind, every_cuda_form
from testing.forms import COMPUTE, CUDA_PRECISIONS
from testing.graphs import external, load, nodes, operators, without_few_queries
from testing.pairs import PairOf

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.graph_check import check_graphs
from stepscore.artifact.graph_contract import GIVEN_HIDDEN, HIDDEN, NEXT_ROWS, PARTS, ROWS
from stepscore.artifact.pair import Pair
from stepscore.enums import Precision
from stepscore_export.graphs.generic import generic_layer, of_models
from stepscore_export.graphs.shape import Shape

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
every_cuda_precision = pytest.mark.parametrize("precision", CUDA_PRECISIONS)
EMBED = "embed.onnx", "embed.fp32.onnx"
"""The graphs that have weights: they look up rows of the file on the host."""
LAYERS = "layer", "last_layer"
HEADS = "head_tile", "head_tile_fp32"
OF_ACTIVATIONS = {
    *(ROWS, NEXT_ROWS, HIDDEN, GIVEN_HIDDEN, names.GIVEN, names.BASE, names.WEIGHT, names.TILE_WEIGHT),
    *(*names.MATRICES, names.FINAL_NORM, names.ROTARY_COS, names.ROTARY_SIN),
    *(names.INPUT_NORM, names.QKV_BIAS, names.QUERY_NORM, names.KEY_NORM, names.POST_NORM),
}


def graphs(pair: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graph files of the first unit."""
    folder = Pair.open(pair).manifest.units[0].folder
    for path in sorted((pair / folder).glob("*.onnx")):
        yield path.name, load(pair, path.name, folder)


def independent(pair_of: PairOf, precision: Precision) -> Path:
    return pair_of.form(CUDA_FORMS[precision.value][0])


def types(graph: onnx.GraphProto, wanted: set[str]) -> set[int]:
    """Element types of these inputs and outputs; a head's `rows` are indices."""
    return {
        value.type.tensor_type.elem_type
        for value in [*graph.input, *graph.output]
        if value.name.removesuffix("_policy").removesuffix("_reference") in wanted
    }


# Bytes


@every_cuda_form
def test_graph_files_hold_no_weights(pair_of: PairOf, form: str) -> None:
    """There are a few constants: axes, shapes, a zero point."""
    for name, model in graphs(pair_of.form(CUDA_FORMS[form][0])):
        inside = [each for each in model.graph.initializer if each.data_location != onnx.TensorProto.EXTERNAL]
        assert all(np.prod(each.dims) <= 4 for each in inside), name
        assert name in EMBED or not external(model), name
        assert model.ByteSize() < 12_000, name


@every_cuda_form
def test_a_handful_of_files_is_all(pair_of: PairOf, form: str) -> None:
    pair = pair_of.form(CUDA_FORMS[form][0])
    manifest = Pair.open(pair).manifest
    found = [name for name, _ in graphs(pair)]
    assert sorted(found) == sorted(names.generic_files(manifest, manifest.units[0]))
    assert len(found) <= 21


@every_cuda_form
def test_the_embedding_is_within_the_weight_file_at_pages(pair_of: PairOf, form: str) -> None:
    pair = pair_of.form(CUDA_FORMS[form][0])
    folder = Pair.open(pair).manifest.units[0].folder
    size = (pair / folder / "weights.bin").stat().st_size
    for name in EMBED:
        places = external(load(pair, name, folder)).values()
        assert places
        for place in places:
            assert place["location"] == "weights.bin"
            assert int(place["offset"]) % 4096 == 0
            assert int(place["offset"]) + int(place["length"]) <= size


@every_cuda_form
def test_every_initializer_is_read(pair_of: PairOf, form: str) -> None:
    for name, model in graphs(pair_of.form(CUDA_FORMS[form][0])):
        read = {value for node in nodes(model.graph) for value in node.input}
        assert {each.name for each in model.graph.initializer} <= read, name


@a_cuda_form_of_each_kind
def test_models_of_equal_constants_have_the_same_graphs(pair_of: PairOf, form: str) -> None:
    """Of two units all graphs, of one unit the layers of its models."""
    pair = pair_of.form(CUDA_FORMS[form][0])
    if (pair / "policy").exists():
        for path in (pair / "policy").glob("*.onnx"):
            assert path.read_bytes() == (pair / "reference" / path.name).read_bytes()
        return
    folder = pair / "both"
    for name in LAYERS:
        for end in (".onnx", ".fp32.onnx"):
            one, other = (folder / f"{name}_{model}{end}" for model in ("reference", "policy"))
            assert one.read_bytes() == other.read_bytes()


def test_models_of_other_constants_have_other_layers() -> None:
    both = Shape(("reference", "policy"), (1e-6, 1e-5), 64, 4, 2, 16, ir.DataType.FLOAT16, on_cpu=False)
    one, other = (ir.to_proto(generic_layer(each, 512, 96, last=False)) for each in of_models(both))
    assert one.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)


# Operators

LAYER = Counter(  # of fp16
    {
        "Gemm": 5,
        "Add": 2,  # the bias, the last residual
        "Gather": 3,  # the padded view and back, kept rows
        "Slice": 2,  # keys and values of kept rows, and none of their rows
        "GroupQueryAttention": 1,
        "Reshape": 1,
        "Pad": 1,
        "Concat": 1,
        "SkipSimplifiedLayerNormalization": 1,
        "SimplifiedLayerNormalization": 1,
        "Sigmoid": 1,
        "Mul": 2,
    }
)


@every_cuda_precision
def test_a_layer_has_exactly_these_operators(pair_of: PairOf, precision: Precision) -> None:
    """In bf16 the activation of the MLP is computed in fp32."""
    in_fp32 = Counter({"QuickGelu": 1, "Cast": 2}) - Counter({"Sigmoid": 1, "Mul": 1})
    expected = Counter(LAYER)
    if precision is Precision.BF16:
        expected = expected - Counter({"Sigmoid": 1, "Mul": 1}) + in_fp32
    assert operators(load(independent(pair_of, precision), "layer.onnx")) == expected


@every_cuda_form
def test_16_bit_graphs_have_no_operator_that_only_the_cpu_has(pair_of: PairOf, form: str) -> None:
    """Nor a choice on the host: they have no If."""
    on_the_cpu = {"If", "LessOrEqual", "GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits", "Range"}
    for name, model in graphs(pair_of.form(CUDA_FORMS[form][0])):
        if name not in EMBED and not name.endswith(".fp32.onnx"):
            assert operators(model).keys().isdisjoint(on_the_cpu), name


@every_cuda_precision
def test_attention_names_its_present_outputs_and_has_no_bias(pair_of: PairOf, precision: Precision) -> None:
    for name in LAYERS:
        graph = load(independent(pair_of, precision), f"{name}.onnx").graph
        (node,) = (each for each in graph.node if each.op_type == "GroupQueryAttention")
        assert len(node.output) == 3
        assert all(node.output)
        assert len(node.input) <= 9


def test_a_layer_in_fp32_is_that_of_a_pair_for_the_cpu(pair_of: PairOf, tiny_pair: Path) -> None:
    """Operators and attributes one by one: the CPU stands for the GPU with the kernels it knows."""

    def steps(model: onnx.ModelProto) -> list[tuple[str, str]]:
        return [
            (node.op_type, "".join(sorted(map(str, node.attribute))) if node.op_type != "If" else "")
            for node in nodes(model.graph)
        ]

    pair = independent(pair_of, Precision.FP16)
    last = f"layer-{TINY.num_hidden_layers - 1:02d}.onnx"
    for name, other in (("layer", "layer-00.onnx"), ("last_layer", last)):
        assert steps(load(pair, f"{name}.fp32.onnx")) == steps(without_few_queries(load(tiny_pair, other)))


# The activation of the MLP


def optimized(activation: Sequence[onnx.NodeProto], folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime makes of these, in fp32: the CPU has no kernel for a sigmoid in fp16."""
    gate, out = activation[0].input[0], activation[-1].output[0]
    (up,) = {value for node in activation for value in node.input} - {
        gate,
        *(value for node in activation for value in node.output),
    }
    values = [onnx.helper.make_tensor_value_info(each, FLOAT, ["n", "i"]) for each in (gate, up, out)]
    graph = onnx.helper.make_graph(activation, "activation", values[:2], values[2:])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operators(onnx.load(folder / "optimized.onnx"))


@pytest.mark.parametrize("name", LAYERS)
def test_no_optimization_makes_quickgelu_of_the_fp16_activation(
    pair_of: PairOf, tmp_path: Path, name: str
) -> None:
    """QuickGelu loses small values in fp16: ONNX Runtime makes it of the usual order, not of this one."""
    graph = load(independent(pair_of, Precision.FP16), f"{name}.onnx").graph
    sigmoid, first, second = (node for node in graph.node if node.op_type in {"Sigmoid", "Mul"})
    gate, (up,) = sigmoid.input[0], set(first.input) - {sigmoid.output[0]}
    assert up != gate
    assert set(second.input) == {first.output[0], gate}
    assert optimized([sigmoid, first, second], tmp_path) == {"Sigmoid": 1, "Mul": 2}
    first.input[:], second.input[:] = [sigmoid.output[0], gate], [first.output[0], up]
    assert optimized([sigmoid, first, second], tmp_path) == {"QuickGelu": 1, "Mul": 1}


def test_bf16_activation_is_computed_in_fp32(pair_of: PairOf) -> None:
    graph = load(independent(pair_of, Precision.BF16), "layer.onnx").graph
    kinds = [node.op_type for node in graph.node]
    at = kinds.index("QuickGelu")
    assert kinds[at - 1 : at + 2] == ["Cast", "QuickGelu", "Cast"]
    assert [node.attribute[0].i for node in (graph.node[at - 1], graph.node[at + 1])] == [
        FLOAT,
        onnx.TensorProto.BFLOAT16,
    ]


# Types


@every_cuda_form
def test_activations_have_16_bits_and_in_the_other_variant_32(pair_of: PairOf, form: str) -> None:
    """Weights as the graphs read them too."""
    for name, model in graphs(pair_of.form(CUDA_FORMS[form][0])):
        wanted = OF_ACTIVATIONS - ({ROWS} if name.startswith("head") else set())
        expected = FLOAT if name.endswith(".fp32.onnx") else COMPUTE[CUDA_FORMS[form][0].precision]
        assert types(model.graph, wanted) == {expected}, name


@every_cuda_form
def test_scales_are_read_as_they_are_stored(pair_of: PairOf, form: str) -> None:
    for name, model in graphs(pair_of.form(CUDA_FORMS[form][0])):
        if name.startswith(("decode", "add")):
            assert types(model.graph, {names.SCALES}) == {HALF}, name


@every_cuda_precision
def test_without_codes_the_fp32_variant_widens_what_is_stored(pair_of: PairOf, precision: Precision) -> None:
    found = dict(graphs(independent(pair_of, precision)))
    assert "cast.onnx" not in found
    assert ("cast.fp32.onnx" in found) == (precision in {Precision.FP16, Precision.BF16})
    if "cast.fp32.onnx" in found:
        assert types(found["cast.fp32.onnx"].graph, {names.CODES}) == {COMPUTE[precision]}


@every_cuda_form
def test_logits_are_in_fp32_before_the_softmax(pair_of: PairOf, form: str) -> None:
    """`head_tile_fp32` widens what the GEMM reads, the other one what it gives."""
    found = dict(graphs(pair_of.form(CUDA_FORMS[form][0])))
    for name in HEADS:
        graph = found[f"{name}.onnx"].graph
        assert types(graph, {PARTS}) == {FLOAT}
        widened = [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT]
        (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
        (softmax,) = (node for node in graph.node if node.op_type == "LogSoftmax")
        outputs = {node.output[0] for node in widened}
        before = {each in outputs for each in gemm.input}
        assert before == {name == "head_tile_fp32"}
        assert (softmax.input[0] in outputs) == (name == "head_tile")


# Tools


@every_cuda_form
def test_the_onnx_checker_accepts_all_but_layers(pair_of: PairOf, form: str) -> None:
    """It does not know ONNX Runtime's own norms: layers are checked by being run."""
    pair = pair_of.form(CUDA_FORMS[form][0])
    folder = pair / Pair.open(pair).manifest.units[0].folder
    paths = [path for path in folder.glob("*.onnx") if not path.name.startswith(LAYERS)]
    assert len(paths) >= 5
    for path in paths:
        onnx.checker.check_model(path)


@every_cuda_form
def test_the_runtime_accepts_every_graph(pair_of: PairOf, form: str) -> None:
    pair = pair_of.form(CUDA_FORMS[form][0])
    check_graphs(pair, Pair.open(pair).manifest)

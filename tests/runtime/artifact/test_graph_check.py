"""Graphs of a stranger are refused before ONNX Runtime sees them; those of every export are not."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from testing.forms import EXACT_FORMS, EXPORTS, INTEGER
from testing.graphs import nodes
from testing.hostile import change_graph, rehash
from testing.pairs import PairOf

from stepscore.artifact.graph_check import OPERATORS, all_graphs, check_graph, check_graphs
from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Exporter, Precision, Target
from stepscore.errors import ModelInvalid

Change = Callable[[onnx.ModelProto], object]
LINE = '{"problem": "1 + 1?", "steps": ["2"]}\n'

# What exporters write


def operators(pair: Path) -> set[tuple[str, str]]:
    models = [onnx.load(path, load_external_data=False) for path in pair.rglob("*.onnx")]
    return {(node.domain, node.op_type) for model in models for node in nodes(model.graph)}


def listed(exporter: Exporter) -> set[tuple[str, str]]:
    return {(domain, name) for domain, names in OPERATORS[exporter].items() for name in names}


@pytest.mark.slow
def test_the_graphs_of_every_form_pass(pair_of: PairOf) -> None:
    for path in [*(pair_of(*each) for each in EXPORTS), *map(pair_of.form, [*EXACT_FORMS, INTEGER])]:
        check_graphs(path, Pair.open(path).manifest)


def test_the_graphs_of_a_pair_with_int8_activations_pass_and_there_are_two_of_most(pair_of: PairOf) -> None:
    path = pair_of.form(INTEGER)
    manifest = Pair.open(path).manifest
    check_graphs(path, manifest)
    (unit,) = manifest.units
    assert sorted(all_graphs(manifest, unit)) == sorted(file.name for file in (path / "both").glob("*.onnx"))
    assert operators(path) <= listed(Exporter.STEPSCORE)


@pytest.mark.optimum
def test_the_graphs_of_a_traced_pair_pass_and_are_no_pair_of_the_other_exporter(pair_of: PairOf) -> None:
    path = pair_of(exporter=Exporter.OPTIMUM)
    check_graphs(path, Pair.open(path).manifest)
    assert operators(path) <= listed(Exporter.OPTIMUM)
    assert not {"Loop", "Scan", "If"} & OPERATORS[Exporter.OPTIMUM][""]


def test_no_operator_repeats_others() -> None:
    named = {name for exporter in Exporter for _, name in listed(exporter)}
    assert not {"Loop", "Scan", "SequenceMap"} & named


# What others write


def renamed(value: str, other: str) -> Change:
    """Rename an input or output of the graph, and wherever it is used."""

    def change(model: onnx.ModelProto) -> None:
        for each in [*model.graph.input, *model.graph.output]:
            each.name = other if each.name == value else each.name
        for node in nodes(model.graph):
            for names in (node.input, node.output):
                names[:] = [other if name == value else name for name in names]

    return change


def instead(kind: str, domain: str = "", **attributes: Any) -> Change:
    """Put a node between the last one and the output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node(kind, ["before"], ["hidden"], domain=domain, **attributes))

    return change


def endless_loop(model: onnx.ModelProto) -> None:
    """A Loop of 2^62 rounds over what a layer reads: ONNX Runtime would run it."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("s", 1, None)],
        [info("on", 9, []), info("s", 1, None)],
    )
    renamed("rows", "looped")(model)
    next(each for each in model.graph.input if each.name == "looped").name = "rows"
    for name, value in (("many", np.array(2**62)), ("yes", np.array(True))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.insert(0, helper.make_node("Loop", ["many", "yes", "rows"], ["looped"], body=body))


def axis(place: int, number: int | None = None, name: str | None = None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        dimension = model.graph.output[0].type.tensor_type.shape.dim[place]
        dimension.Clear()
        if number is not None:
            dimension.dim_value = number
        if name is not None:
            dimension.dim_param = name

    return change


def entry(key: str, value: str) -> Change:
    """Change where the first weight is."""

    def change(model: onnx.ModelProto) -> None:
        place = next(t for t in model.graph.initializer if t.data_location == 1).external_data
        next(each for each in place if each.key == key).value = value

    return change


def typed(element_type: int) -> Change:
    return lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", element_type)


def function(model: onnx.ModelProto) -> None:
    identity = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [identity], opsets))


def nested(model: onnx.ModelProto) -> None:
    choice = next(node for node in model.graph.node if node.op_type == "If")
    branch = choice.attribute[0].g
    branch.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


HOSTILE: dict[str, tuple[Change, str]] = {
    "loop": (endless_loop, "the operator 'Loop'"),
    "random": (instead("RandomUniformLike"), "the operator 'RandomUniformLike'"),
    "other activation": (instead("Tanh"), "the operator 'Tanh'"),
    "no operator": (instead("Frob\x1b[31m"), r"the operator 'Frob\\x1b\[31m'"),
    "other domain": (instead("Foo", "evil"), "the operator 'Foo' of the domain 'evil'"),
    "another of com.microsoft": (instead("BiasGelu", "com.microsoft"), "'BiasGelu' of the domain"),
    "function": (function, "it has functions"),
    "branch of a branch": (nested, "a branch has branches"),
    "opset of a stranger": (
        lambda model: model.opset_import.append(helper.make_opsetid("evil", 1)),
        "opset 1 of the domain 'evil'",
    ),
    "opset of the future": (lambda model: setattr(model.opset_import[0], "version", 99), "opset 99"),
    "input renamed": (renamed("rows", "rowz"), "its input 'rows' is missing|'rowz' is not expected"),
    "input added": (
        lambda model: model.graph.input.append(helper.make_tensor_value_info("more", 1, [1])),
        "its input 'more' is not expected",
    ),
    "output renamed": (renamed("hidden", "hid"), "its output 'hid(den)?' is"),
    "no output": (lambda model: model.graph.ClearField("output"), "its output 'hidden' is missing"),
    "output twice": (
        lambda model: model.graph.output.append(model.graph.output[0]),
        "its output 'hidden' is declared twice",
    ),
    "axis of another name": (axis(0, name="q"), r"its output hidden is \[q, 64\], expected"),
    "axis of a number": (axis(0, 2**40), r"its output hidden is \[1099511627776, 64\]"),
    "axis of another number": (axis(1, 32), r"is \[s, 32\], expected \['s', 64\]"),
    "no shape": (
        lambda model: model.graph.input[0].type.tensor_type.ClearField("shape"),
        "is not a tensor with a shape",
    ),
    "integers for activations": (typed(7), "has the element type 7"),
    "two floating-point types": (typed(10), "different floating-point types"),
    "weights elsewhere": (entry("location", "../manifest.json"), "is not in weights.bin"),
    "weights beyond": (entry("offset", "99999999999"), "is not within weights.bin"),
    "weights before": (entry("offset", "-4"), "is not within weights.bin"),
    "weights nowhere": (entry("length", "9" * 400), "is not within weights.bin"),
    "name that acts on a terminal": (
        lambda model: setattr(model.graph.node[0], "name", "\x1b[31mred"),
        r"the name '\\x1b\[31mred'",
    ),
    "nothing": (lambda model: model.Clear(), "it holds no graph"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_before_a_session_is_opened(
    pair_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change, fault = HOSTILE[name]
    change_graph(pair_copy, "policy/body.onnx", change)
    monkeypatch.setattr(Sessions, "open", lambda *_args, **_kwargs: pytest.fail("a session was opened"))
    pair = Pair.open(pair_copy)
    with pytest.raises(ModelInvalid, match=rf"^policy/body.onnx is not a graph .*({fault})"):
        check_graphs(pair.path, pair.manifest, ["body.onnx"])
    for command in (["score", str(pair_copy), "-"], ["verify", str(pair_copy)]):
        done = CliRunner().invoke(main, command, input=LINE)
        assert done.exit_code == 3, done.output
        assert done.stderr.startswith("error: policy/body.onnx is not a graph that `stepscore export` writes")
        assert "\x1b" not in done.output


def test_the_graph_of_another_place_is_refused(pair_copy: Path) -> None:
    for name, other in (
        ("head.onnx", "body.onnx"),
        ("embed.onnx", "head.onnx"),
        ("body.onnx", "layer-00.onnx"),
    ):
        shutil.copy(pair_copy / "reference" / other, pair_copy / "policy" / name)
        rehash(pair_copy)
        with pytest.raises(ModelInvalid, match=f"^policy/{name}"):
            check_graphs(pair_copy, Pair.open(pair_copy).manifest, [name])


def test_a_pair_that_names_another_exporter_is_refused(pair_of: PairOf, tiny_pair: Path) -> None:
    pair = Pair.open(tiny_pair)
    traced = msgspec.structs.replace(pair.manifest, exporter=Exporter.OPTIMUM)
    with pytest.raises(ModelInvalid, match=r"policy/body.onnx"):
        check_graphs(pair.path, traced, ["body.onnx"])
    cuda = pair_of(Precision.FP16, Target.CUDA)
    check_graphs(cuda, Pair.open(cuda).manifest)


def test_no_change_of_bytes_gives_anything_but_a_verdict(tiny_pair: Path) -> None:
    pair = Pair.open(tiny_pair)
    unit = pair.manifest.units[0]
    whole = (tiny_pair / unit.folder / "layer-00.onnx").read_bytes()

    @given(st.integers(0, len(whole) - 1), st.binary(max_size=8), st.integers(0, 8))
    def holds(at: int, put: bytes, dropped: int) -> None:
        with contextlib.suppress(ModelInvalid):
            check_graph(whole[:at] + put + whole[at + dropped :], pair.manifest, unit, "layer-00.onnx")

    holds()

"""Attention: which kernel the graphs ask for, and that the CPU's two agree where one takes over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from testing.checkpoints import TINY, write_checkpoint
from testing.forms import every_precision
from testing.graphs import load, nodes, without_few_queries
from testing.pairs import PairOf, export_unmeasured

from stepscore.artifact.graph_contract import SHORT_TOKENS
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Precision
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.options import ExportOptions
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

# Which kernel


def attentions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in nodes(graph) if node.op_type == "GroupQueryAttention"]


@pytest.mark.slow
@every_precision
def test_attention_has_no_bias(pair_of: PairOf, precision: Precision) -> None:
    for node in attentions(load(pair_of(precision), "body.onnx").graph):
        assert len(node.input) <= 9 or not any(node.input[9:])


def test_cpu_attention_has_present_outputs_for_long_sequences(tiny_pair: Path) -> None:
    """Three named outputs are the kernel that never holds all scores, one is the other."""
    for name in ("body.onnx", "layer-00.onnx", "layer-01.onnx"):
        graph = without_few_queries(load(tiny_pair, name)).graph
        (question,) = (node for node in graph.node if node.op_type == "LessOrEqual")
        assert question.input[0] == "total_sequence_length"
        (limit,) = (each for each in graph.initializer if each.name == question.input[1])
        assert onnx.numpy_helper.to_array(limit) == SHORT_TOKENS
        for node in graph.node:
            if node.op_type == "If":
                assert list(node.input) == list(question.output)
                branches = {each.name: each.g for each in node.attribute}
                (short,), (long,) = (attentions(branches[f"{way}_branch"]) for way in ("then", "else"))
                assert (len(short.output), len(long.output)) == (1, 3)
                assert all([*short.output, *long.output])
                assert short.input == long.input
                assert short.attribute == long.attribute


# Numbers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes more tokens than the kernel for short sequences."""
    shape = replace(TINY, max_position_embeddings=2048)
    return write_checkpoint(tmp_path_factory.mktemp("long") / "model", shape, seed=1)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrtEngine]:
    output = tmp_path_factory.mktemp("long-pair") / "pair"
    export_unmeasured(model, model, output, ExportOptions(Precision.FP32))
    opened = OrtEngine(Pair.open(output))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sequence() -> NDArray[np.int64]:
    """The shortest that is long; without its last token, the longest that is short."""
    return np.random.default_rng(11).integers(0, TINY.vocab_size, SHORT_TOKENS + 1)


def logprobs(engine: OrtEngine, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    (results,) = engine.run([pack([tokens], [0])])
    return results["policy"]


@pytest.mark.slow
@pytest.mark.parametrize("length", [SHORT_TOKENS, SHORT_TOKENS + 1])
def test_both_kernels_agree_with_float64(
    engine: OrtEngine, model: Path, sequence: NDArray[np.int64], length: int
) -> None:
    with Checkpoint.open(model) as checkpoint:
        _, truth = hidden_and_logprobs(checkpoint, sequence[:length])
    assert np.abs(logprobs(engine, sequence[:length]) - truth).max() < 1e-5


def test_both_kernels_agree_where_they_meet(engine: OrtEngine, sequence: NDArray[np.int64]) -> None:
    """A token does not see what follows: one token more changes nothing but the kernel."""
    short, long = logprobs(engine, sequence[:-1]), logprobs(engine, sequence)
    assert np.abs(short - long[:-1]).max() < 1e-5

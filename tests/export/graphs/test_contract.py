"""The names in the graphs are those of the graph contract, and a batch feeds what no other graph does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from testing.checkpoints import TINY
from tests.conftest import PairOf

from stepscore.artifact import graph_contract as contract
from stepscore.batching.batch import pack
from stepscore.enums import Coding, Precision

UNITS = {"policy": ("policy",), "both": ("reference", "policy")}
OF_GRAPHS = (contract.ROWS, contract.HIDDEN)
OF_CHUNKS = (contract.CHUNK_ROWS, contract.TARGETS)
OUTPUTS = (contract.ROWS, contract.NEXT_ROWS, contract.HIDDEN, contract.PARTS)


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, pair_of: PairOf) -> Path:
    if request.param == "policy":
        return pair_of(Precision.FP32) / "policy"
    return pair_of(Precision.INT4, coding=Coding.DIFFERENCE) / "both"


@pytest.mark.parametrize("name", contract.graph_files(TINY.num_hidden_layers, TINY.vocab_size))
def test_inputs_are_fed_by_a_batch_or_by_the_graph_before(unit: Path, name: str) -> None:
    graph = onnx.load(unit / name, load_external_data=False).graph
    inputs = {value.name for value in graph.input}
    feeds = pack([np.arange(5), np.arange(3)], [0, 0]).feeds(inputs)
    streams = {each for kind in OF_GRAPHS for each in contract.stream_names(kind, UNITS[unit.name])}
    given = [contract.GIVEN_HIDDEN, *map(contract.given_name, range(TINY.num_hidden_layers))]
    streams |= {each for kind in given for each in contract.stream_names(kind, UNITS[unit.name])}
    chunks = set(OF_CHUNKS) if name.startswith("head") else set()
    assert inputs - feeds.keys() <= streams | chunks
    assert feeds.keys() <= inputs
    kept = map(contract.kept_name, range(TINY.num_hidden_layers))
    outputs = {each for kind in (*OUTPUTS, *kept) for each in contract.stream_names(kind, UNITS[unit.name])}
    assert {value.name for value in graph.output} <= outputs

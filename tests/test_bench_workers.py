"""The machinery of benchmarks: processes that take turns, samples of text, profiles of products."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
from benchmarks.integer_products import measure
from benchmarks.peers.contender import Models
from benchmarks.peers.ours import Ours
from benchmarks.profiles import Product
from benchmarks.throughput import DEFAULT, Bench
from benchmarks.worker import Skipped, Turns, take_turns
from benchmarks.workloads import Workload
from tests.checkpoints import TINY
from tests.conftest import PairOf
from tests.fake_contenders import Crashing, Echo, Missing, Refusing

from stepscore.artifact import Pair
from stepscore.choices import Activations, Coding, Precision
from stepscore.engine import Engine

PURE = ("rates", "table", "readme", "workloads", "profiles", "peers.gguf_file", "peers.llama_cpp", "latency")
NOWHERE = Models(Path("policy"), Path("reference"), Path("scratch"))


@pytest.mark.parametrize("name", PURE)
def test_examples_in_docstrings_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"benchmarks.{name}"), report=True)
    assert results.failed == 0
    assert results.attempted > 0


def test_contenders_take_turns_and_what_cannot_run_is_skipped_with_its_reason() -> None:
    sequences = [np.arange(4), np.arange(7)]
    kinds = [Echo("a"), Missing("b"), Refusing("c"), Crashing("d")]
    first, missing, refusing, crashing = take_turns(kinds, NOWHERE, sequences, threads=1, repeats=2)
    assert isinstance(first, Turns)
    assert (first.name, len(first.seconds)) == ("a", 2)
    assert [policy.tolist() for policy, _ in first.logprobs] == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
    assert first.peak_mb > 0
    assert missing == Skipped("b", "peer_package is not installed: see `make peers`")
    assert refusing == Skipped("c", "this CPU saturates")
    assert isinstance(crashing, Skipped)
    assert "crashed" in crashing.reason


@pytest.mark.parametrize("share", [True, False])
def test_our_contender_gives_the_engines_numbers_in_input_order(tiny_pair: Path, share: bool) -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(0, TINY.vocab_size, 20)
    sequences = [np.concatenate([start, rng.integers(0, TINY.vocab_size, n)]) for n in (3, 30, 1)]
    engine = Engine(Pair.open(tiny_pair))
    ours = Ours("fp32", tiny_pair, 1, share).load(NOWHERE).logprobs(sequences)
    for sequence, found in zip(sequences, ours, strict=True):
        (alone,) = engine.logprobs([sequence])
        for model in (0, 1):
            np.testing.assert_allclose(found[model], alone[model], atol=1e-5)


def test_every_aim_is_about_a_peer_of_some_round(tmp_path: Path) -> None:
    bench = Bench(
        NOWHERE, dict.fromkeys(("fp32", DEFAULT, "int8 + int4, exact activations"), tmp_path), 2, True
    )
    for sequences in ([np.arange(512)], [np.arange(600)] * 8):
        workload = Workload("x", "y", sequences)
        rounds = [[each.name for each in contenders] for contenders in bench.rounds(workload)]
        ours = bench.ours(DEFAULT).name
        assert all(ours in names for names in rounds)
        for _, peer in bench.aims(workload):
            assert any(peer.name in names for names in rounds), peer.name


def test_products_are_counted_in_the_run(pair_of: PairOf) -> None:
    pair = pair_of(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)
    found = measure(pair, np.arange(40), threads=1, repeats=1)
    shapes = {Product(each["rows"], each["depth"], each["columns"]) for each in found["products"]}
    assert Product(40, TINY.hidden_size, TINY.intermediate_size) in shapes
    assert 0 < found["share_of_kernels"] < 1
    assert found["in_run_gops"] > 0
    assert found["alone_gops"] > 0
    assert found["from_memory_gops"] > 0

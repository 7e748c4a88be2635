"""Machinery of the benchmarks: processes that alternate, rounds and aims, profiles of GEMMs."""

from __future__ import annotations

import doctest
import importlib
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from benchmarks.integer_gemm import measure
from benchmarks.peers.contender import Checkpoints
from benchmarks.peers.stepscore_pair import StepscorePair
from benchmarks.peers.transformers_card import TorchPrecision, TransformersCard
from benchmarks.support.forms import DEFAULT, FORMS
from benchmarks.support.lineup import Lineup
from benchmarks.support.options import add_provider, measured_provider
from benchmarks.support.profiles import Gemm
from benchmarks.support.worker import Skipped, Turns, take_turns
from benchmarks.support.workloads import Workload
from numpy.typing import NDArray
from testing.checkpoints import TINY
from testing.fake_contenders import Crashing, Echo, Full, Missing, Refusing
from testing.pairs import PairOf

from stepscore.artifact.pair import Pair
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.provider_checks import runs_here
from stepscore.enums import Activations, Coding, Precision, Provider, Target

pytestmark = pytest.mark.slow

WITH_EXAMPLES = (
    *("beam_search", "latency", "peers.gguf_file", "peers.llama_cpp"),
    *("reporting.docs_tables", "reporting.table"),
    *("support.forms", "support.gpu_lines", "support.gpu_plan", "support.machine", "support.profiles"),
    *("support.rates", "support.workloads"),
)
NOWHERE = Checkpoints(Path("policy"), Path("reference"), Path("scratch"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
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
def test_stepscore_pair_gives_the_engines_numbers_in_input_order(tiny_pair: Path, share: bool) -> None:
    rng = np.random.default_rng(0)
    start = rng.integers(0, TINY.vocab_size, 20)
    sequences = [np.concatenate([start, rng.integers(0, TINY.vocab_size, n)]) for n in (3, 30, 1)]
    engine = OrtEngine(Pair.open(tiny_pair))
    scored = StepscorePair("fp32", tiny_pair, 1, share).load(NOWHERE).logprobs(sequences)
    for sequence, found in zip(sequences, scored, strict=True):
        (alone,) = engine.logprobs([sequence])
        for model in (0, 1):
            np.testing.assert_allclose(found[model], alone[model], atol=1e-5)


@pytest.mark.parametrize("provider", FORMS)
@pytest.mark.parametrize("sequences", [[np.arange(512)], [np.arange(600)] * 8], ids=["one", "several"])
def test_every_aim_is_about_a_peer_of_some_round(
    tmp_path: Path, provider: Provider, sequences: list[NDArray[np.int64]]
) -> None:
    lineup = Lineup(provider, dict.fromkeys(FORMS[provider], tmp_path), threads=2, peers=True)
    workload = Workload("x", "y", sequences)
    rounds = [[each.name for each in contenders] for contenders in lineup.rounds(workload)]
    assert all(lineup.default.name in names for names in rounds)
    for form in FORMS[provider]:
        assert any(lineup.form(form).name in names for names in rounds), form
    for _, peer in lineup.aims(workload):
        assert any(peer.name in names for names in rounds), peer.name


def test_on_cuda_the_card_runs_on_the_gpu_in_every_precision_there_is(tmp_path: Path) -> None:
    pairs = dict.fromkeys(FORMS[Provider.CUDA], tmp_path)
    rounds = Lineup(Provider.CUDA, pairs, threads=2, peers=True).rounds(Workload("x", "y", [np.arange(9)]))
    cards = [each for contenders in rounds for each in contenders if isinstance(each, TransformersCard)]
    assert {each.precision for each in cards} == set(TorchPrecision)
    assert {each.device for each in cards} == {"cuda"}


def test_memory_of_a_gpu_is_what_a_process_gives_back() -> None:
    used = iter([900, 300, 300, 100])
    kinds = [Echo("a"), Missing("b"), Echo("c")]
    first, _, third = take_turns(
        kinds, NOWHERE, [np.arange(4)], threads=1, repeats=1, gauge=lambda: next(used)
    )
    assert isinstance(first, Turns)
    assert isinstance(third, Turns)
    assert (first.peak_mb, third.peak_mb) == (600, 200)


def test_a_full_gpu_is_a_reason_to_skip() -> None:
    (full,) = take_turns([Full("a")], NOWHERE, [np.arange(4)], threads=1, repeats=1)
    assert full == Skipped("a", "the GPU is out of memory with the other engines of its round loaded")


def test_a_provider_that_is_not_here_ends_a_benchmark_before_it_begins() -> None:
    if runs_here(Target.CUDA):
        pytest.skip("the CUDA provider runs here")
    parser = ArgumentParser()
    add_provider(parser)
    assert measured_provider(parser.parse_args([])) is Provider.CPU
    with pytest.raises(SystemExit, match="CUDAExecutionProvider"):
        measured_provider(parser.parse_args(["--provider", "cuda"]))


def test_integer_gemms_are_counted_in_the_run(pair_of: PairOf) -> None:
    pair = pair_of(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)
    found = measure(pair, np.arange(40), threads=1, repeats=1)
    shapes = {Gemm(each["rows"], each["depth"], each["columns"]) for each in found["products"]}
    assert Gemm(40, TINY.hidden_size, TINY.intermediate_size) in shapes
    assert 0 < found["share_of_kernels"] < 1
    assert found["in_run_gops"] > 0
    assert found["alone_gops"] > 0
    assert found["from_memory_gops"] > 0


def test_a_pair_in_the_default_form_alone_meets_every_peer_once(tmp_path: Path) -> None:
    lineup = Lineup(Provider.CPU, {DEFAULT: tmp_path}, threads=2, peers=True)
    solution = Workload("x", "y", [np.arange(9)])
    rounds = lineup.rounds(solution)
    names = [each.name for contenders in rounds for each in contenders if each != lineup.default]
    assert all(lineup.default in contenders for contenders in rounds)
    assert len(names) == len(set(names))
    assert {peer.name for _, peer in lineup.aims(solution)} <= set(names)

"""The graphs compute the same numbers whichever way the model is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from testing.checkpoints import TINY, write_checkpoint
from testing.forms import CPU_RESIDENCIES, every_residency
from testing.pairs import Checkpoints, PairOf, export_unmeasured

from stepscore.artifact import graph_contract
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Coding, Format, Precision, Residency
from stepscore_export.options import ExportOptions
from stepscore_export.weights import writer as model_module


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(3)
    sequences = [random.integers(0, TINY.vocab_size, length) for length in (2, 17, 60, 5)]
    return pack(sequences, [0, 3, 20, 0])


def hidden_and_logprobs(pair: Path, batch: Batch, options: EngineOptions) -> list[NDArray[np.floating]]:
    engine = OrtEngine(Pair.open(pair), options)
    hidden, logprobs = engine.trace(batch)
    engine.close()
    return [*hidden.values(), *logprobs.values()]


@pytest.mark.parametrize("precision", Format.ONNX.precisions)
def test_the_body_equals_its_layers_one_by_one(pair_of: PairOf, precision: Precision, batch: Batch) -> None:
    resident = hidden_and_logprobs(pair_of(precision), batch, EngineOptions(residency=Residency.RESIDENT))
    streamed = hidden_and_logprobs(pair_of(precision), batch, EngineOptions(residency=Residency.STREAM))
    for whole, parts in zip(resident, streamed, strict=True):
        assert np.abs(whole - parts).max() < 1e-6 * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("rows", [1, 2, 7, 31])
def test_head_chunk_size_changes_no_number(tiny_pair: Path, batch: Batch, rows: int) -> None:
    whole = hidden_and_logprobs(tiny_pair, batch, EngineOptions())
    chunked = hidden_and_logprobs(tiny_pair, batch, EngineOptions(head_rows=rows))
    for one, other in zip(whole, chunked, strict=True):
        assert np.abs(one - other).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("tile", [64, 100, 319])
def test_vocabulary_tile_size_changes_no_number(
    tiny_checkpoints: Checkpoints,
    pair_of: PairOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tile: int,
    precision: Precision,
) -> None:
    """Every token of the vocabulary is a target once, so every border is."""
    usual = pair_of(precision)  # is kept for other tests: made with the usual tiles
    every_token = pack([np.arange(TINY.vocab_size)], [0])
    whole = hidden_and_logprobs(usual, every_token, EngineOptions())
    monkeypatch.setattr(model_module, "TILE", tile)
    monkeypatch.setattr(graph_contract, "TILE", tile)
    options = ExportOptions(precision, coding=Coding.INDEPENDENT)
    tiled = export_unmeasured(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair", options)
    parts = hidden_and_logprobs(tiled.path, every_token, EngineOptions())
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one - other).max() < 1e-5


def test_a_token_does_not_see_what_follows(tiny_pair: Path) -> None:
    tokens = np.arange(40, 60)
    engine = OrtEngine(Pair.open(tiny_pair))
    ((whole, _),) = engine.logprobs([tokens])
    ((cut, _),) = engine.logprobs([tokens[:11]])
    engine.close()
    assert np.abs(whole[:10] - cut).max() < 1e-5


def test_logprobs_are_normalised_over_all_columns(tiny_pair: Path) -> None:
    """Every token of the vocabulary as the second of two: their probabilities add up to one."""
    engine = OrtEngine(Pair.open(tiny_pair))
    scores = engine.logprobs([np.array([5, token]) for token in range(TINY.vocab_size)])
    engine.close()
    for model in (0, 1):
        assert abs(sum(float(np.exp(pair[model][0])) for pair in scores) - 1) < 1e-5


@every_residency
@pytest.mark.parametrize("precision", Format.ONNX.precisions)
def test_every_residency_runs_every_precision(
    pair_of: PairOf, precision: Precision, residency: Residency, batch: Batch
) -> None:
    engine = OrtEngine(Pair.open(pair_of(precision)), EngineOptions(residency=residency))
    (scores,) = engine.run([batch])
    engine.close()
    assert set(scores) == {"policy", "reference"}
    assert all(np.isfinite(values).all() for values in scores.values())


@pytest.fixture(scope="module", params=[1, 3])
def depth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.slow
def test_any_depth_has_its_layers(tmp_path: Path, depth: int, batch: Batch) -> None:
    """With one layer the first is also the last."""
    shape = replace(TINY, num_hidden_layers=depth)
    policy = write_checkpoint(tmp_path / "policy", shape, seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", shape, seed=1)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32)).path
    resident = hidden_and_logprobs(pair, batch, EngineOptions(residency=Residency.RESIDENT))
    for residency in CPU_RESIDENCIES:
        other = hidden_and_logprobs(pair, batch, EngineOptions(residency=residency))
        for whole, parts in zip(resident, other, strict=True):
            assert np.abs(whole - parts).max() < 1e-5

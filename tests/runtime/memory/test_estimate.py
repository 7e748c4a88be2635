"""How much scoring takes, and what a run holds at once: laws, for the figures are measured."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.manifests import CODED, LOADS, MANIFESTS, SETTINGS, SHAPES, every_kind, manifest

from stepscore.artifact.manifest import Architecture, Difference, Manifest
from stepscore.batching.batch import pack
from stepscore.batching.planner import plan
from stepscore.enums import Exporter, Precision, Residency
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.peak import MemoryEstimate, PeakLoad
from stepscore.memory.settings import Settings


@given(MANIFESTS, SETTINGS, LOADS, LOADS)
def test_a_larger_load_never_takes_less(
    pair: Manifest, settings: Settings, one: PeakLoad, more: PeakLoad
) -> None:
    larger = PeakLoad(one.rows + more.rows, one.scores + more.scores, one.window_rows + more.window_rows)
    assert estimate(pair, settings, larger).total >= estimate(pair, settings, one).total


@given(MANIFESTS, SETTINGS, LOADS, st.integers(1, 10_000))
def test_larger_chunks_of_the_head_never_take_less(
    pair: Manifest, settings: Settings, load: PeakLoad, more: int
) -> None:
    larger = replace(settings, head_rows=settings.head_rows + more)
    assert estimate(pair, larger, load).total >= estimate(pair, settings, load).total


@every_kind
def test_a_batch_grows_with_its_rows_its_scores_and_the_heads_chunk(pair: Manifest) -> None:
    settings = Settings(Residency.RESIDENT, 4096, 16_384, 256)

    def batch(load: PeakLoad, head_rows: int = 256) -> int:
        return estimate(pair, replace(settings, head_rows=head_rows), load).batch

    assert batch(PeakLoad(4096, 1, 1)) > batch(PeakLoad(2048, 1, 1)) > batch(PeakLoad(1, 1, 1)) > 0
    assert batch(PeakLoad(1, 1 << 34, 1)) > batch(PeakLoad(1, 1 << 33, 1))
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    narrow = msgspec.structs.replace(pair.architecture, intermediate_size=1, hidden_size=1, **heads)
    pair = msgspec.structs.replace(pair, architecture=narrow)
    assert batch(PeakLoad(4096, 1, 1), 2048) > batch(PeakLoad(4096, 1, 1), 1024)


def test_heads_that_are_wide_beside_the_mlp_count() -> None:
    """As in Qwen3-0.6B, whose heads are twice as wide as its hidden states."""
    pair, settings = manifest(precision=Precision.FP32), Settings(Residency.RESIDENT, 2048, 16_384, 256)
    load = PeakLoad(2048, 1, 1, positions=4096)
    wide = msgspec.structs.replace(pair.architecture, head_dim=16 * pair.architecture.head_dim)
    more = estimate(msgspec.structs.replace(pair, architecture=wide), settings, load)
    assert more.batch > 2 * estimate(pair, settings, load).batch


@given(MANIFESTS, SETTINGS, LOADS)
def test_rows_of_a_window_wait_only_between_models_or_layers(
    pair: Manifest, settings: Settings, load: PeakLoad
) -> None:
    one = estimate(pair, settings, load).window
    more = estimate(pair, settings, replace(load, window_rows=2 * load.window_rows + 1)).window
    assert more == one == 0 if settings.residency is Residency.RESIDENT else more > one


@given(MANIFESTS, SETTINGS, LOADS)
def test_a_layer_weighs_no_more_than_a_model_and_a_model_no_more_than_all(
    pair: Manifest, settings: Settings, load: PeakLoad
) -> None:
    layer, model, all_ = (
        estimate(pair, replace(settings, residency=residency), load).weights
        for residency in (Residency.STREAM, Residency.ALTERNATE, Residency.RESIDENT)
    )
    assert 0 < layer <= model <= all_
    if len(pair.units) == 1:
        assert model == all_


@given(SHAPES, st.sampled_from(list(CODED.values())), SETTINGS)
def test_streaming_weights_do_not_grow_with_depth(
    shape: Architecture, difference: Difference, settings: Settings
) -> None:
    deeper = msgspec.structs.replace(shape, num_hidden_layers=shape.num_hidden_layers + 7)
    streamed = replace(settings, residency=Residency.STREAM)
    one, other = (estimate(manifest(each, difference=difference), streamed) for each in (shape, deeper))
    assert one == other


@given(MANIFESTS, SETTINGS)
def test_estimate_without_load_assumes_full_batches(pair: Manifest, settings: Settings) -> None:
    rows = settings.max_batch_tokens
    usual = PeakLoad.usual(settings)
    assert estimate(pair, settings) == estimate(pair, settings, usual)
    assert usual.rows == rows
    assert rows <= usual.scores <= 512 * rows
    assert usual.window_rows == max(settings.window_tokens, rows)


@given(st.builds(MemoryEstimate, *[st.integers(0, 10**12)] * 4))
def test_the_total_is_the_sum(parts: MemoryEstimate) -> None:
    assert parts.total == parts.process + parts.weights + parts.batch + parts.window


# What a run holds at once


def test_a_load_is_the_most_of_each() -> None:
    two = pack([np.arange(5), np.arange(10, 13)], [0, 0])  # 8 rows, 2 lines of 5
    long = pack([np.arange(7)], [0])  # 7 rows, 1 line of 7
    both = PeakLoad(8, 50, 8, (50,), vocabulary=10, window_scored=6, positions=10)
    assert PeakLoad.of([[two], [long]]) == both
    several = replace(both, window_rows=15, score_steps=(49, 50), window_scored=12)
    assert PeakLoad.of([[long, two], [], [long]]) == several
    assert PeakLoad.of([[long]]) == PeakLoad(7, 49, 7, (49,), vocabulary=7, window_scored=6, positions=7)


def test_a_load_counts_shared_rows_once() -> None:
    window = [np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), np.array([1, 2])]
    batches = [group.batch for group in plan(window, [0, 0, 0], 100)]
    assert PeakLoad.of([batches]) == PeakLoad(
        5, 2 * 4 * 4, 5, (2 * 4 * 4,), vocabulary=5, window_scored=3, positions=2 * 4
    )


def test_traced_pair_memory_grows_with_padded_positions() -> None:
    ours = manifest(precision=Precision.FP32)
    traced = msgspec.structs.replace(ours, exporter=Exporter.OPTIMUM)
    settings = Settings(Residency.RESIDENT, 4096, 16_384, 256)
    loads = [PeakLoad(2048, 1, 1, positions=positions) for positions in (2048, 4096)]
    assert [estimate(ours, settings, load).batch for load in loads] == [
        estimate(ours, settings, loads[0]).batch
    ] * 2
    assert estimate(traced, settings, loads[1]).batch > estimate(traced, settings, loads[0]).batch


@pytest.mark.parametrize("limit", [None, 60_000_000_000, 18_000_000_000])
def test_traced_pair_is_never_streamed(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: 1)
    pair = msgspec.structs.replace(manifest(precision=Precision.FP16), exporter=Exporter.OPTIMUM)
    try:
        settings = fit_settings(pair, memory_limit=limit)
    except DoesNotFit:
        assert limit == 18_000_000_000
    else:
        assert settings.residency in {Residency.RESIDENT, Residency.ALTERNATE}


@pytest.mark.parametrize("windows", [[], [[]]])
def test_load_of_no_batches_is_none(windows: list[list[object]]) -> None:
    assert PeakLoad.of(windows) == PeakLoad(0, 0, 0, vocabulary=0)  # type: ignore[arg-type]


def test_scores_beyond_an_array_of_the_mlp_are_kept_for_each_batch_that_has_more() -> None:
    pair, settings = manifest(precision=Precision.FP32), Settings(Residency.RESIDENT, 4096, 16_384, 256)
    array = 2048 * pair.architecture.intermediate_size
    large = 1 + array // pair.architecture.num_attention_heads

    def needed(*steps: int, of: Settings = settings) -> int:
        return estimate(pair, of, PeakLoad(2048, max(steps), 1, steps)).total

    assert needed(large // 2) == needed(large // 4, large // 2)
    assert needed(3 * large) > needed(2 * large)
    assert needed(2 * large, 3 * large) > needed(3 * large)
    streamed = replace(settings, residency=Residency.STREAM)
    assert needed(2 * large, 3 * large, of=streamed) == needed(3 * large, of=streamed)

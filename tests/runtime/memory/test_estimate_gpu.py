"""What a pair for CUDA takes of a GPU, of the host in its place, and which stages stay."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from testing.manifests import (
    BILLIONS,
    CUDA_MANIFESTS,
    LOADS,
    SHAPES,
    WEIGHT_BITS,
    cuda_manifest,
    manifest,
    total,
)

from stepscore.artifact.manifest import Architecture, Manifest
from stepscore.enums import Provider, Residency, Target
from stepscore.errors import DoesNotFit, PairIncompatible
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings, most_resident
from stepscore.memory.gpu import evenly_spread, scratch_bytes, stage_sizes, streamed_bytes, weight_bytes
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import CUDA_BATCH_TOKENS, LEAST_BATCH_TOKENS, Settings, residencies

every_cuda_pair = pytest.mark.parametrize("form", WEIGHT_BITS)
TOKENS = st.sampled_from([8192, 4096, 2048, 512, 128])
LIMITS = st.integers(1_000_000_000, 200_000_000_000)


def settings_of(residency: Residency, tokens: int = 4096, kept: int = 0, *, on_gpu: bool = True) -> Settings:
    return Settings(residency, tokens, 16_384, min(tokens, 4096), kept, on_gpu=on_gpu)


# The estimate


def test_a_pair_for_cuda_is_resident_whatever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: 0)
    settings = fit_settings(manifest(target=Target.CUDA))
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, CUDA_BATCH_TOKENS)
    assert settings.on_gpu
    assert not settings.materializes_scores


@pytest.mark.parametrize(
    ("form", "residency", "gigabytes"),
    [
        ("int8-int4", Residency.RESIDENT, 16),
        ("lossless", Residency.RESIDENT, 21),
        ("fp16", Residency.STREAM, 6),
        ("int8-int4", Residency.STREAM, 6),
        ("int4-int4", Residency.STREAM, 6),
        ("lossless", Residency.STREAM, 6),
    ],
)
def test_a_pair_of_two_models_of_7_billion_fits(form: str, residency: Residency, gigabytes: float) -> None:
    """The goals for memory, by arithmetic."""
    assert total(cuda_manifest(form), residency, 4096) < gigabytes * 1e9


def test_int4_on_int4_fits_11_gigabytes_with_some_stages_streamed() -> None:
    settings = fit_settings(cuda_manifest("int4-int4"), memory_limit=11 * 10**9)
    assert settings.residency is Residency.PARTIAL
    assert settings.resident_stages > 20


@given(CUDA_MANIFESTS, TOKENS, LOADS, LOADS)
def test_a_larger_load_never_takes_less(pair: Manifest, tokens: int, one: PeakLoad, more: PeakLoad) -> None:
    larger = PeakLoad(one.rows + more.rows, one.scores + more.scores, one.window_rows + more.window_rows)
    for residency in (Residency.RESIDENT, Residency.STREAM):
        settings = settings_of(residency, tokens)
        assert estimate(pair, settings, larger).total >= estimate(pair, settings, one).total


@given(CUDA_MANIFESTS, LOADS)
def test_a_gpu_holds_activations_in_16_bits_and_the_host_in_32(pair: Manifest, load: PeakLoad) -> None:
    gpu, host = (
        estimate(pair, settings_of(Residency.RESIDENT, on_gpu=on_gpu), load) for on_gpu in (True, False)
    )
    assert host.window == 2 * gpu.window
    assert host.batch >= gpu.batch


@given(shape=SHAPES, on_gpu=st.booleans())
def test_floats_are_decoded_on_the_host_only(shape: Architecture, *, on_gpu: bool) -> None:
    settings = settings_of(Residency.STREAM, on_gpu=on_gpu)
    floats, coded = (scratch_bytes(cuda_manifest(form, shape), settings) for form in ("fp16", "int8-int4"))
    assert coded > 0
    assert floats == (0 if on_gpu else coded)


@given(CUDA_MANIFESTS)
def test_residencies_differ_in_weights_only(pair: Manifest) -> None:
    count = len(stage_sizes(pair))
    resident, partial, none_kept, stream = (
        estimate(pair, settings_of(residency, kept=kept))
        for residency, kept in (
            (Residency.RESIDENT, 0),
            (Residency.PARTIAL, count),
            (Residency.PARTIAL, 0),
            (Residency.STREAM, 0),
        )
    )
    assert resident == partial
    assert none_kept == stream
    assert replace(resident, weights=stream.weights) == stream


@given(CUDA_MANIFESTS, st.integers(0, 200))
def test_stages_stay_or_are_copied_once_a_window(pair: Manifest, kept: int) -> None:
    sizes = stage_sizes(pair)
    kept = min(kept, len(sizes))
    settings = settings_of(Residency.PARTIAL, kept=kept)
    stay = sum(sizes) - streamed_bytes(pair, settings)
    ring = weight_bytes(pair, settings) - stay
    assert 0 <= ring <= 2 * max(sizes)
    assert (ring == 0) == (kept == len(sizes))


@given(st.integers(1, 300), st.data())
def test_stages_that_stay_are_evenly_spread(stages: int, data: st.DataObject) -> None:
    """Between two of them, from window to window too, are equally many others, give or take one."""
    kept = data.draw(st.integers(0, stages))
    chosen = sorted(evenly_spread(kept, stages))
    assert len(chosen) == kept
    assert set(chosen) <= set(range(stages))
    gaps = {after - before for before, after in pairwise([*chosen, *(stages + each for each in chosen[:1])])}
    assert not gaps or max(gaps) - min(gaps) <= 1


# The limit


@given(CUDA_MANIFESTS, TOKENS, LIMITS)
def test_partial_keeps_as_many_stages_as_the_limit_allows(pair: Manifest, tokens: int, limit: int) -> None:
    settings = settings_of(Residency.PARTIAL, tokens)
    kept = most_resident(pair, settings, limit).resident_stages

    def needed(stages: int) -> int:
        return estimate(pair, replace(settings, resident_stages=stages)).total

    assert kept == 0 or needed(kept) <= limit
    assert all(needed(more) > limit for more in range(kept + 1, len(stage_sizes(pair)) + 1))


@given(CUDA_MANIFESTS, TOKENS, LIMITS, st.integers(0, 50_000_000_000))
def test_more_memory_never_keeps_fewer_stages(pair: Manifest, tokens: int, limit: int, more: int) -> None:
    settings = settings_of(Residency.PARTIAL, tokens)
    tight, roomy = (most_resident(pair, settings, each).resident_stages for each in (limit, limit + more))
    assert roomy >= tight


@given(CUDA_MANIFESTS, LIMITS, st.sampled_from([Residency.AUTO, Residency.PARTIAL, Residency.STREAM]))
def test_no_choice_is_above_the_limit(pair: Manifest, limit: int, residency: Residency) -> None:
    try:
        settings = fit_settings(pair, residency=residency, memory_limit=limit)
    except DoesNotFit:
        least = fit_settings(pair, residency=Residency.STREAM, max_batch_tokens=LEAST_BATCH_TOKENS)
        assert estimate(pair, least).total > limit
        return
    assert estimate(pair, settings).total <= limit
    assert residency in {Residency.AUTO, settings.residency}


@given(CUDA_MANIFESTS, LIMITS)
def test_auto_is_resident_wherever_that_fits(pair: Manifest, limit: int) -> None:
    assume(total(pair, Residency.RESIDENT, 2048) <= limit)
    assert fit_settings(pair, memory_limit=limit).residency is Residency.RESIDENT


@every_cuda_pair
def test_auto_keeps_some_stages_before_it_takes_small_batches(form: str) -> None:
    pair = cuda_manifest(form)
    settings = fit_settings(pair, memory_limit=total(pair, Residency.RESIDENT, 2048) - 1)
    assert (settings.residency, settings.max_batch_tokens) == (Residency.PARTIAL, CUDA_BATCH_TOKENS)
    assert 0 < settings.resident_stages < len(stage_sizes(pair))


@every_cuda_pair
@pytest.mark.parametrize("residency", [Residency.AUTO, Residency.PARTIAL, Residency.STREAM])
def test_a_limit_that_cannot_be_held_is_refused_with_the_least(form: str, residency: Residency) -> None:
    pair = cuda_manifest(form)
    needed = total(pair, Residency.STREAM, LEAST_BATCH_TOKENS)
    with pytest.raises(DoesNotFit) as refused:
        fit_settings(pair, residency=residency, memory_limit=1_000_000_000)
    assert f"needs about {needed / 1e9:.2f} GB; the limit is 1.00 GB" in refused.value.message
    assert fit_settings(pair, memory_limit=needed).max_batch_tokens == LEAST_BATCH_TOKENS


def test_the_free_memory_of_a_gpu_guides_the_choice_but_is_no_limit() -> None:
    pair = cuda_manifest("int8-int4")
    assert fit_settings(pair, available=12_000_000_000) == fit_settings(pair, memory_limit=12_000_000_000)
    assert fit_settings(pair, available=1_000_000).residency is Residency.STREAM
    with pytest.raises(DoesNotFit):
        fit_settings(pair, available=80_000_000_000, memory_limit=1_000_000)


def test_on_the_cpu_the_free_memory_of_the_host_guides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = cuda_manifest("int8-int4")
    resident = estimate(pair, fit_settings(pair, provider=Provider.CPU, memory_limit=10**12)).total
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: resident // 2)
    settings = fit_settings(pair, provider=Provider.CPU)
    assert not settings.on_gpu
    assert settings.residency is Residency.PARTIAL
    assert estimate(pair, settings).total <= resident // 2


# What is refused


def test_partial_without_a_limit_is_refused() -> None:
    with pytest.raises(DoesNotFit) as refused:
        fit_settings(cuda_manifest("fp16"), residency=Residency.PARTIAL)
    assert refused.value.message == (
        "--residency partial keeps as many layers as a limit allows, and none is given"
    )
    assert refused.value.hint == "give a --memory-limit, or use --residency auto"


@every_cuda_pair
def test_alternate_is_refused_for_cuda(form: str) -> None:
    pair = cuda_manifest(form)
    assert residencies(pair) == [Residency.RESIDENT, Residency.PARTIAL, Residency.STREAM]
    with pytest.raises(PairIncompatible) as refused:
        fit_settings(pair, residency=Residency.ALTERNATE)
    assert refused.value.message == (
        "pairs for CUDA do not support --residency alternate: streaming is nearly as fast"
    )
    assert refused.value.hint == "use --residency partial with a --memory-limit, or --residency stream"


def test_partial_is_refused_for_the_cpu() -> None:
    with pytest.raises(PairIncompatible) as refused:
        fit_settings(manifest(), residency=Residency.PARTIAL, memory_limit=10**12)
    assert refused.value.message == "only stepscore's own pairs for CUDA support --residency partial"
    assert refused.value.hint == "use --residency auto"


def test_a_depth_of_one_layer_and_one_part_of_the_head_has_two_stages_a_model() -> None:
    shape = msgspec.structs.replace(BILLIONS, num_hidden_layers=1, vocab_size=1000)
    assert [len(stage_sizes(cuda_manifest(form, shape))) for form in ("fp16", "int8-int4")] == [4, 2]

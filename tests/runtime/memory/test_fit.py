"""What is chosen to stay within a limit: laws, for the figures are measured."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.forms import every_residency
from testing.manifests import BATCHES, MANIFESTS, RESIDENCIES, every_kind, manifest, total

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Precision, Residency
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import BATCH_TOKENS, LEAST_BATCH_TOKENS, usual_head_rows

SLOWER = {Residency.RESIDENT: 0, Residency.ALTERNATE: 1, Residency.STREAM: 2}


def units(pair: Manifest) -> list[Residency]:
    """The residencies that `auto` chooses from."""
    models = [Residency.ALTERNATE] if len(pair.units) > 1 else []
    return [Residency.RESIDENT, *models, Residency.STREAM]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with no memory free."""
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: 0)
    return monkeypatch


@every_kind
def test_auto_is_resident_in_full_batches_where_that_fits(pair: Manifest) -> None:
    needed = total(pair, Residency.RESIDENT, BATCH_TOKENS)
    settings = fit_settings(pair, memory_limit=needed)
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, BATCH_TOKENS)


@every_kind
def test_smaller_batches_come_before_another_residency(pair: Manifest) -> None:
    needed = total(pair, Residency.RESIDENT, BATCH_TOKENS)
    settings = fit_settings(pair, memory_limit=needed - 1)
    assert settings.residency is Residency.RESIDENT
    assert settings.max_batch_tokens < BATCH_TOKENS


@every_kind
def test_auto_alternates_or_streams_if_both_models_do_not_fit(
    pair: Manifest,
) -> None:
    needed = total(pair, Residency.RESIDENT, LEAST_BATCH_TOKENS)
    expected = Residency.STREAM if pair.difference is not None else Residency.ALTERNATE
    assert fit_settings(pair, memory_limit=needed - 1).residency is expected


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_auto_streams_if_one_model_does_not_fit(precision: Precision) -> None:
    pair = manifest(precision=precision)
    needed = total(pair, Residency.ALTERNATE, LEAST_BATCH_TOKENS)
    assert fit_settings(pair, memory_limit=needed - 1).residency is Residency.STREAM


@given(MANIFESTS, st.integers(1, 10**12))
def test_auto_chooses_the_fastest_settings_that_fit(pair: Manifest, limit: int) -> None:
    try:
        settings = fit_settings(pair, memory_limit=limit)
    except DoesNotFit:
        settings = None
    else:
        assert estimate(pair, settings).total <= limit
    for residency in units(pair):
        tokens = BATCH_TOKENS
        while tokens >= LEAST_BATCH_TOKENS:
            if settings and (residency, tokens) == (settings.residency, settings.max_batch_tokens):
                return
            assert total(pair, residency, tokens) > limit
            tokens //= 2
    assert settings is None


@given(MANIFESTS, st.integers(1, 10**12), st.integers(0, 10**12))
def test_more_memory_is_never_slower(pair: Manifest, limit: int, more: int) -> None:
    try:
        tight = fit_settings(pair, memory_limit=limit)
    except DoesNotFit:
        return
    roomy = fit_settings(pair, memory_limit=limit + more)
    assert SLOWER[roomy.residency] <= SLOWER[tight.residency]
    if roomy.residency is tight.residency:
        assert roomy.max_batch_tokens >= tight.max_batch_tokens


@given(MANIFESTS, RESIDENCIES, *[st.integers(1, 100_000)] * 2, st.none() | st.integers(10**10, 10**13))
def test_given_settings_are_kept(
    pair: Manifest, residency: Residency, tokens: int, window: int, limit: int | None
) -> None:
    try:
        settings = fit_settings(
            pair, residency=residency, max_batch_tokens=tokens, window_tokens=window, memory_limit=limit
        )
    except DoesNotFit:
        assert limit is not None
        kept = fit_settings(pair, residency=residency, max_batch_tokens=tokens, window_tokens=window)
        assert estimate(pair, kept).total > limit
        return
    assert (settings.residency, settings.max_batch_tokens) == (residency, tokens)
    assert settings.window_tokens == max(window, tokens)


@every_kind
def test_a_given_residency_gets_the_largest_batch_that_fits(pair: Manifest) -> None:
    for residency, tokens in itertools.product(units(pair), BATCHES):
        settings = fit_settings(pair, residency=residency, memory_limit=total(pair, residency, tokens))
        assert settings.residency is residency
        assert settings.max_batch_tokens >= tokens


@given(MANIFESTS, RESIDENCIES, st.none() | st.integers(1, 50_000), st.none() | st.integers(1, 50_000))
def test_no_window_is_smaller_than_a_batch_and_no_chunk_of_the_head_larger(
    pair: Manifest, residency: Residency, tokens: int | None, window: int | None
) -> None:
    settings = fit_settings(pair, residency=residency, max_batch_tokens=tokens, window_tokens=window)
    assert settings.window_tokens >= settings.max_batch_tokens >= settings.head_rows >= 1
    assert settings.head_rows <= usual_head_rows(pair)


@every_kind
@pytest.mark.usefixtures("free")
def test_auto_uses_the_least_if_nothing_is_free(pair: Manifest) -> None:
    settings = fit_settings(pair)
    tried = itertools.product(units(pair), BATCHES)
    assert estimate(pair, settings).total == min(total(pair, *each) for each in tried)


@every_kind
def test_free_memory_is_the_default_limit(pair: Manifest, free: pytest.MonkeyPatch) -> None:
    needed = total(pair, Residency.RESIDENT, 512)
    free.setattr("stepscore.memory.fit.available_bytes", lambda: needed)
    assert fit_settings(pair) == fit_settings(pair, memory_limit=needed)


def test_auto_is_resident_if_free_memory_is_unknown(free: pytest.MonkeyPatch) -> None:
    free.setattr("stepscore.memory.fit.available_bytes", lambda: None)
    settings = fit_settings(manifest())
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, BATCH_TOKENS)


@every_kind
@every_residency
def test_unreachable_limit_is_rejected_with_need_and_limit(pair: Manifest, residency: Residency) -> None:
    least = Residency.STREAM if residency is Residency.AUTO else residency
    needed = total(pair, least, LEAST_BATCH_TOKENS)
    with pytest.raises(DoesNotFit) as caught:
        fit_settings(pair, residency=residency, memory_limit=needed // 2)
    assert f"{least} scoring in batches of {LEAST_BATCH_TOKENS} tokens" in caught.value.message
    named = re.search(r"about ([0-9.]+) GB; the limit is ([0-9.]+) GB", caught.value.message)
    assert named is not None
    assert [float(text) for text in named.groups()] == pytest.approx([needed / 1e9, needed / 2e9], abs=0.06)
    assert caught.value.hint is not None
    assert "--memory-limit" in caught.value.hint
    assert caught.value.exit_code == 3

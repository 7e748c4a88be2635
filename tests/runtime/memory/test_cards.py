"""What cards are expected to do with a pair: laws, for the figures are estimates."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.manifests import BILLIONS, CUDA_MANIFESTS, WEIGHT_BITS, cuda_manifest

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Precision, Residency
from stepscore.memory.cards import CARDS, Card, described, expectations, tokens_per_second
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.gpu import stage_sizes, streamed_bytes
from stepscore.memory.settings import Settings

BY_NAME = {card.name: card for card in CARDS}
every_card = pytest.mark.parametrize("card", CARDS, ids=BY_NAME)


@given(CUDA_MANIFESTS)
def test_every_card_has_an_expectation_within_its_memory(pair: Manifest) -> None:
    found = list(expectations(pair))
    assert [each.card for each in found] == list(CARDS)
    for each in found:
        if each.settings is None:
            assert (each.num_bytes, each.tokens_per_second) == (0, 0)
            continue
        assert each.settings == fit_settings(pair, memory_limit=round(each.card.gigabytes * 1e9))
        assert each.num_bytes == estimate(pair, each.settings).total <= each.card.gigabytes * 1e9
        assert each.tokens_per_second > 0


@given(CUDA_MANIFESTS, st.sampled_from(CARDS))
def test_more_stages_streamed_are_never_faster(pair: Manifest, card: Card) -> None:
    settings = fit_settings(pair)
    kept = [Residency.STREAM, *range(len(stage_sizes(pair)) + 1), Residency.RESIDENT]
    speeds = [tokens_per_second(pair, of(settings, each), card) for each in kept]
    assert speeds == sorted(speeds)


@given(CUDA_MANIFESTS, st.sampled_from(CARDS))
def test_a_slow_link_alone_decides_where_stages_are_streamed(pair: Manifest, card: Card) -> None:
    slow = replace(card, link=1e-6)
    streamed, resident = (of(fit_settings(pair), each) for each in (Residency.STREAM, Residency.RESIDENT))
    seconds = streamed_bytes(pair, streamed) / (slow.link * 1e9)
    expected = pytest.approx(streamed.window_tokens / seconds)
    assert tokens_per_second(pair, streamed, slow) == expected
    assert tokens_per_second(pair, resident, slow) == tokens_per_second(pair, resident, card)


def of(settings: Settings, kept: Residency | int) -> Settings:
    if isinstance(kept, Residency):
        return replace(settings, residency=kept)
    return replace(settings, residency=Residency.PARTIAL, resident_stages=kept)


@given(CUDA_MANIFESTS, st.sampled_from(CARDS), st.sampled_from(["tflops", "bandwidth", "link"]))
def test_a_faster_card_is_never_slower(pair: Manifest, card: Card, which: str) -> None:
    settings = fit_settings(pair, residency=Residency.STREAM)
    faster = replace(card, **{which: 2 * getattr(card, which)})
    assert tokens_per_second(pair, settings, faster) >= tokens_per_second(pair, settings, card)


@given(CUDA_MANIFESTS, st.sampled_from(CARDS), st.sampled_from(list(Residency)))
def test_larger_windows_are_never_slower(pair: Manifest, card: Card, residency: Residency) -> None:
    """Weights are decoded and copied once a window."""
    settings = replace(fit_settings(pair), residency=residency)
    larger = replace(settings, window_tokens=2 * settings.window_tokens)
    slower, faster = (tokens_per_second(pair, each, card) for each in (settings, larger))
    assert faster >= slower * (1 - 1e-9)


@pytest.mark.parametrize(
    ("form", "card", "residency"),
    [
        ("fp16", "T4", Residency.PARTIAL),
        ("int8", "T4", Residency.PARTIAL),
        ("int8-int4", "T4", Residency.RESIDENT),
        ("int4-int4", "T4", Residency.RESIDENT),
        ("lossless", "RTX 4090", Residency.RESIDENT),
        ("lossless", "A10", Residency.RESIDENT),
        ("fp16", "RTX 4090", Residency.PARTIAL),
        ("fp16", "A100", Residency.RESIDENT),
    ],
)
def test_two_models_of_7_billion_on_a_card(form: str, card: str, residency: Residency) -> None:
    settings = {each.card.name: each.settings for each in expectations(cuda_manifest(form))}[card]
    assert settings is not None
    assert settings.residency is residency


@every_card
def test_codes_take_less_memory_and_no_less_time_than_floats(card: Card) -> None:
    """Where both are resident: decoding is work that floats do not have."""
    settings = fit_settings(cuda_manifest("fp16"))
    speeds = [tokens_per_second(cuda_manifest(form), settings, card) for form in WEIGHT_BITS]
    assert max(speeds) == speeds[list(WEIGHT_BITS).index("fp16")]
    needs = [estimate(cuda_manifest(form), settings).total for form in WEIGHT_BITS]
    assert max(needs) == needs[list(WEIGHT_BITS).index("fp16")]


def test_a_card_without_bf16_runs_no_pair_in_bf16() -> None:
    pair = cuda_manifest("lossless")
    for each in expectations(pair):
        assert (each.settings is None) == (not each.card.has_bf16)
    (t4,) = (each for each in expectations(pair) if each.card.name == "T4")
    assert described(pair, t4) == "does not compute in bf16"
    fp16 = msgspec.structs.replace(pair, precision=Precision.FP16)
    assert all(each.settings for each in expectations(fp16))


def test_an_expectation_reads_as_an_estimate() -> None:
    pair = cuda_manifest("fp16")
    said = {each.card.name: described(pair, each) for each in expectations(pair)}
    assert said["T4"].startswith("partial, ")
    assert " of 66 stages resident, batches of 8,192 tokens: " in said["T4"]
    assert said["H200"].startswith("resident, batches of 8,192 tokens: ")
    assert all(text.endswith(" tokens/s (estimated)") for text in said.values())


def test_a_pair_that_fits_no_card_says_so() -> None:
    huge = msgspec.structs.replace(BILLIONS, hidden_size=65_536, intermediate_size=262_144)
    pair = cuda_manifest("fp16", huge)
    assert "does not fit" in {described(pair, each) for each in expectations(pair)}

"""Residency: what is open at once and when results come; never which numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from testing.checkpoints import TINY
from testing.engine_runs import run
from testing.forms import EXACT_FORMS, FORM_OF_EACH_KIND, INTEGER, MERGED, every_residency, name_of
from testing.pairs import Checkpoints, PairOf
from testing.sequences import tokens
from testing.shared_folder import SharedFolder

from stepscore.artifact.graph_contract import SHORT_TOKENS
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.batching.planner import plan
from stepscore.engine.base import EngineOptions, PairLogprobs
from stepscore.engine.ort import engine as engine_module
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Coding, Format, Residency
from stepscore_export.options import ExportOptions

# Beyond SHORT_TOKENS, and wide enough that a product is summed in several parts.
SHAPE = replace(TINY, hidden_size=192, intermediate_size=320, head_dim=48, max_position_embeddings=2048)
INDEPENDENT = [ExportOptions(precision, coding=Coding.INDEPENDENT) for precision in Format.ONNX.precisions]

PairIn = Callable[[ExportOptions], Pair]


def name_of_any(options: ExportOptions) -> str:
    independent = options.coding is Coding.INDEPENDENT
    return f"{options.precision}-independent" if independent else name_of(options)


FORMS = [*INDEPENDENT, *EXACT_FORMS, INTEGER]


@pytest.fixture(scope="module")
def pair_in(shared_folder: SharedFolder) -> PairIn:
    """Pairs of two models that take more tokens than the kernel for short sequences."""
    folder = shared_folder.once("long-checkpoints", lambda place: Checkpoints.write(place, SHAPE))
    pair_of = PairOf(Checkpoints.at(folder), shared_folder)
    return lambda options: Pair.open(pair_of.form(options))


def short_window() -> list[Batch]:
    """Ragged batches, among them shared beginnings, starts behind the first token, and a single row."""
    first, second, *others = tokens(60, 33, 17, 5, 90, 24)
    sequences = [first, np.concatenate([first[:40], second]), *others, first[:12]]
    starts = [0, 35, 3, 0, 20, 0, 5]
    groups = plan(sequences, starts, max_tokens=100)
    assert len(groups) > 2
    return [*(group.batch for group in groups), pack(tokens(2), [0]), pack(tokens(50), [48])]


def long_window() -> list[Batch]:
    """Batches beyond SHORT_TOKENS beside one that is not."""
    sequences = tokens(1200, 300, 1100, 31)
    groups = plan(sequences, [0, 0, 1000, 0], max_tokens=1500)
    assert [group.batch.pad_index.shape[1] > SHORT_TOKENS for group in groups] == [True, False, True]
    return [group.batch for group in groups]


def assert_same_bits(one: Sequence[PairLogprobs], other: Sequence[PairLogprobs]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert set(ours) == set(theirs) == {"policy", "reference"}
        for name in ours:
            assert np.isfinite(ours[name]).all()
            np.testing.assert_array_equal(ours[name], theirs[name])


# The same bits


Window = Callable[[], list[Batch]]
Results = Callable[[ExportOptions, Window, Residency], list[PairLogprobs]]


def cases(forms: Sequence[ExportOptions]) -> pytest.MarkDecorator:
    """Every form in the short window; in the long one, whose attention knows no form, one of each kind."""
    long = [form for form in forms if form in (INDEPENDENT[0], *FORM_OF_EACH_KIND)]
    return pytest.mark.parametrize(
        ("options", "window"),
        [
            *(pytest.param(form, short_window, id=f"{name_of_any(form)}-short") for form in forms),
            *(
                pytest.param(form, long_window, marks=pytest.mark.slow, id=f"{name_of_any(form)}-long")
                for form in long
            ),
        ],
    )


@pytest.fixture(scope="module")
def results(pair_in: PairIn) -> Results:
    """Log-probs of a form, a window and a residency, computed at the first request."""
    return cache(lambda options, window, residency: run(pair_in(options), window(), residency))


@pytest.mark.slow
@cases(FORMS)
def test_body_and_layers_give_the_same_bits_in_equal_sessions(
    pair_in: PairIn, monkeypatch: pytest.MonkeyPatch, options: ExportOptions, window: Window
) -> None:
    """The same operators in the same order."""
    monkeypatch.setattr(
        engine_module, "Sessions", lambda *of, preserve_node_order, low_memory: Sessions(*of, low_memory=True)
    )
    body = run(pair_in(options), window(), Residency.ALTERNATE)
    assert_same_bits(run(pair_in(options), window(), Residency.STREAM), body)


@cases(FORMS)
def test_resident_and_alternate_give_the_same_bits(
    results: Results, options: ExportOptions, window: Window
) -> None:
    resident = results(options, window, Residency.RESIDENT)
    assert_same_bits(results(options, window, Residency.ALTERNATE), resident)


@pytest.mark.slow
@cases(FORMS)
def test_stream_agrees_with_resident_within_rounding(
    results: Results, options: ExportOptions, window: Window
) -> None:
    """ONNX Runtime sums a product in another order where it may pack the matrix, as lean sessions do not."""
    resident = results(options, window, Residency.RESIDENT)
    streamed = results(options, window, Residency.STREAM)
    for ours, theirs in zip(streamed, resident, strict=True):
        assert set(ours) == set(theirs) == {"policy", "reference"}
        assert max(np.abs(ours[name] - theirs[name]).max() for name in ours) < 1e-5


UNPACKED = [*MERGED.values(), INTEGER]


@cases(UNPACKED)
def test_stream_equals_resident_bitwise_without_prepacking(
    results: Results, options: ExportOptions, window: Window
) -> None:
    """Integers have no order; base plus difference is not there when a session is opened."""
    resident = results(options, window, Residency.RESIDENT)
    assert_same_bits(results(options, window, Residency.STREAM), resident)


def test_prefetch_does_not_change_a_bit(pair_in: PairIn) -> None:
    pair, window = pair_in(INDEPENDENT[0]), short_window()
    in_time = run(pair, window, Residency.STREAM, prefetch_next_layer=False)
    assert_same_bits(run(pair, window, Residency.STREAM), in_time)


@every_residency
def test_batches_of_a_window_are_independent(pair_in: PairIn, residency: Residency) -> None:
    window = short_window()
    alone = [run(pair_in(INDEPENDENT[0]), [batch], residency)[0] for batch in window]
    assert_same_bits(run(pair_in(INDEPENDENT[0]), window, residency), alone)


@every_residency
def test_engine_runs_several_windows(pair_in: PairIn, residency: Residency) -> None:
    window = short_window()
    engine = OrtEngine(pair_in(INDEPENDENT[0]), EngineOptions(residency=residency))
    once, again = list(engine.run(window)), list(engine.run(window))
    assert list(engine.run([])) == []
    engine.close()
    assert_same_bits(once, again)

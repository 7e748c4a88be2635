"""The template's prefix as given rows of an engine: the same numbers, without computing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from testing.forms import INTEGER, a_form_of_each_kind, every_form
from testing.pairs import PairOf
from testing.solutions import SAMPLES, SOLUTIONS

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine.base import Engine, EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Convention, Residency
from stepscore.scorer import Scorer
from stepscore_export.options import ExportOptions


def token_ids(pair: Pair) -> list[np.ndarray]:
    encoder = pair.encoder()
    return [encoder.encode(each.problem, each.steps, Convention.CARD).token_ids for each in SOLUTIONS]


def logprobs(engine: Engine, sequences: list[np.ndarray], *, given: bool) -> np.ndarray:
    """Both models' log-probs of all sequences, [2, tokens]."""
    batch = pack(sequences, [0] * len(sequences), **({"given": engine.given} if given else {}))
    (found,) = engine.run([batch])
    return np.stack([found[name][np.concatenate(batch.target_of)] for name in ("policy", "reference")])


def test_fp32_log_probs_are_those_of_a_computed_prefix(tiny_pair: Path) -> None:
    pair = Pair.open(tiny_pair)
    engine = OrtEngine(pair)
    sequences = token_ids(pair)
    given, computed = (logprobs(engine, sequences, given=each) for each in (True, False))
    assert pair.manifest.prefix_tokens > 10
    np.testing.assert_allclose(given, computed, rtol=0, atol=1e-5)


@every_form
def test_log_probs_of_the_prefix_itself_are_those_of_the_checkpoints(
    pair_of: PairOf, tiny_pair: Path, form: ExportOptions
) -> None:
    """Quantization does not touch them: they are what the fp32 pair computes."""
    count = Pair.open(tiny_pair).manifest.prefix_tokens - 1
    truth = logprobs(OrtEngine(Pair.open(tiny_pair)), token_ids(Pair.open(tiny_pair))[:1], given=False)
    pair = Pair.open(pair_of.form(form))
    found = logprobs(OrtEngine(pair), token_ids(pair)[:1], given=True)
    np.testing.assert_allclose(found[:, :count], truth[:, :count], rtol=0, atol=1e-5)


@a_form_of_each_kind
@pytest.mark.parametrize("residency", [Residency.STREAM, Residency.ALTERNATE])
def test_residency_changes_log_probs_by_rounding_only(
    pair_of: PairOf, form: ExportOptions, residency: Residency
) -> None:
    pair = Pair.open(pair_of.form(form))
    sequences = token_ids(pair)
    resident, other = (
        logprobs(OrtEngine(pair, EngineOptions(residency=each)), sequences, given=True)
        for each in (Residency.RESIDENT, residency)
    )
    np.testing.assert_allclose(other, resident, rtol=0, atol=1e-5)


@pytest.mark.slow
@every_form
def test_identical_models_give_rewards_of_exactly_0(identical_pair_of: PairOf, form: ExportOptions) -> None:
    with Scorer.load(identical_pair_of.form(form)) as scorer:
        assert all(reward == 0 for result in scorer.score(SOLUTIONS) for reward in result.step_rewards)


@pytest.mark.parametrize("convention", list(Convention))
def test_rewards_do_not_depend_on_the_other_records(pair_of: PairOf, convention: Convention) -> None:
    with Scorer.load(pair_of.form(INTEGER), convention=convention) as scorer:
        together = scorer.score(SAMPLES)
        for record, result in zip(SAMPLES, together, strict=True):
            (alone,) = scorer.score([record])
            np.testing.assert_allclose(alone.step_rewards, result.step_rewards, rtol=0, atol=1e-8)


def test_prefix_is_computed_where_a_text_begins_otherwise(tiny_pair: Path) -> None:
    """A custom system turn has the first tokens in common with the template's, and no more."""
    pair = Pair.open(tiny_pair)
    engine = OrtEngine(pair)
    other = token_ids(pair)[0].copy()
    other[3] += 1
    batch = pack([other], [0], given=engine.given)
    assert len(batch.input_ids) == len(other) - 3
    given, computed = (logprobs(engine, [other], given=each) for each in (True, False))
    np.testing.assert_allclose(given, computed, rtol=0, atol=1e-5)

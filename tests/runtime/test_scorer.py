"""The product: what goes in comes out in order, and nobody's numbers depend on their neighbours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.checkpoints import TINY, write_checkpoint
from testing.hypothesis_profiles import examples
from testing.pairs import Checkpoints, export_unmeasured
from testing.solutions import SAMPLES, SOLUTIONS, alone, load
from testing.watched import WatchedEngine

from stepscore.artifact.manifest import Selftest
from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, PairLogprobs
from stepscore.enums import Convention, Precision
from stepscore.errors import InvalidRecord, NonFinite, NoSteps, ScorerClosed, TooLong
from stepscore.records import Record
from stepscore.results import Result
from stepscore.scorer import Scorer
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline import export as pair_module

BETA = 0.001
TEXTS = st.text("ab .+=12\n?", min_size=1, max_size=30).filter(lambda text: text.strip())
RECORDS = st.builds(Record, TEXTS, st.lists(TEXTS, min_size=1, max_size=5).map(tuple))


@pytest.fixture(scope="module")
def scorer(tiny_pair: Path) -> Iterator[Scorer]:
    with Scorer.load(tiny_pair) as scorer:
        yield scorer


def close(one: Result, other: Result, tolerance: float) -> bool:
    return np.allclose(one.cumulative_rewards, other.cumulative_rewards, rtol=0, atol=tolerance)


# Order


def test_results_come_in_the_order_of_the_records(scorer: Scorer) -> None:
    results = scorer.score(SOLUTIONS)
    assert [len(result.step_rewards) for result in results] == [len(record.steps) for record in SOLUTIONS]
    for record, result in zip(SOLUTIONS, results, strict=True):
        assert result.num_tokens == alone(scorer, record).num_tokens


def test_a_stream_gives_every_key_back_in_order(scorer: Scorer) -> None:
    keys = ["b", "a", "a", 3]
    assert [key for key, _ in scorer.stream(zip(keys, SOLUTIONS, strict=True))] == keys


def test_no_records_give_no_results(scorer: Scorer) -> None:
    assert scorer.score([]) == []
    assert list(scorer.stream([])) == []


def test_mappings_are_records(scorer: Scorer) -> None:
    record = SOLUTIONS[0]
    as_mapping = {"query": record.problem, "answer": list(record.steps), "id": 7}
    assert scorer.score([as_mapping]) == scorer.score([record])


# What cannot be scored


def test_errors_come_out_at_their_places(scorer: Scorer) -> None:
    given_error = InvalidRecord("line 2 is no record")
    items = [SOLUTIONS[0], given_error, Record("p", ()), SOLUTIONS[1], Record("p", ("x" * 2000,))]
    outcomes = [outcome for _, outcome in scorer.stream(enumerate(items))]
    assert [type(outcome) for outcome in outcomes] == [Result, InvalidRecord, NoSteps, Result, TooLong]
    assert outcomes[1] is given_error


@examples(15)
@given(st.lists(st.sampled_from(SOLUTIONS) | st.none(), min_size=1, max_size=12), st.integers(1, 400))
def test_errors_do_not_change_a_bit_of_the_other_numbers(
    tiny_pair: Path, tiny_engine: Engine, records: list[Record | None], budget: int
) -> None:
    """Neither in windows of one batch nor in one window of many."""
    bad = NoSteps("none")
    for window_tokens in (budget, 16_384):
        scorer = load(tiny_pair, engine=tiny_engine, max_batch_tokens=budget, window_tokens=window_tokens)
        items = enumerate(record or bad for record in records)
        among_bad = [outcome for _, outcome in scorer.stream(items)]
        by_themselves = scorer.score([record for record in records if record])
        assert [outcome for outcome in among_bad if outcome is not bad] == by_themselves


def test_score_raises_the_first_error_with_its_position(scorer: Scorer) -> None:
    with pytest.raises(NoSteps, match=r"^record 1: "):
        scorer.score([SOLUTIONS[0], Record("p", ()), {"no": "record"}])


# Neighbours


@examples(15)
@given(st.lists(RECORDS, min_size=1, max_size=6))
def test_the_batch_changes_no_number_beyond_rounding(scorer: Scorer, records: list[Record]) -> None:
    together = scorer.score(records)
    assert all(
        close(result, alone(scorer, record), 1e-5 * BETA * result.num_tokens)
        for record, result in zip(records, together, strict=True)
    )


@pytest.mark.parametrize("budget", [1, 150, 300, 100_000])
def test_the_token_budget_changes_no_logprob_beyond_rounding(tiny_pair: Path, budget: int) -> None:
    with load(tiny_pair, tokens=True) as whole, load(tiny_pair, tokens=True, max_batch_tokens=budget) as cut:
        for one, other in zip(whole.score(SOLUTIONS), cut.score(SOLUTIONS), strict=True):
            assert np.abs(one.policy_logprobs - other.policy_logprobs).max() < 1e-5
            assert np.abs(one.reference_logprobs - other.reference_logprobs).max() < 1e-5


def test_another_last_step_leaves_the_rewards_before_it(tiny_pair: Path) -> None:
    """By convention `exact` to the bit of rounding: no step sees a token of the next."""
    with load(tiny_pair, convention="exact") as exact:
        one = alone(exact, Record("p?", ("One.", "Two.", "Three.")))
        other = alone(exact, Record("p?", ("One.", "Two.", "Something else.", "And more.")))
    assert np.allclose(
        one.cumulative_rewards[:2], other.cumulative_rewards[:2], rtol=0, atol=1e-5 * BETA * 100
    )


@examples(10)
@given(st.permutations([*SOLUTIONS, *SOLUTIONS]), st.integers(1, 1000))
def test_the_window_and_its_order_change_no_number_beyond_rounding(
    tiny_pair: Path, tiny_engine: Engine, scorer: Scorer, records: list[Record], window_tokens: int
) -> None:
    together = load(
        tiny_pair, engine=tiny_engine, max_batch_tokens=window_tokens, window_tokens=window_tokens
    ).score(records)
    for record, result in zip(records, together, strict=True):
        assert close(result, alone(scorer, record), 1e-5 * BETA * result.num_tokens)


def test_sharing_changes_no_number_beyond_rounding(tiny_pair: Path, scorer: Scorer) -> None:
    with load(tiny_pair, share=False) as apart:
        for one, other in zip(scorer.score(SAMPLES), apart.score(SAMPLES), strict=True):
            assert close(one, other, 1e-5 * BETA * one.num_tokens)


# Rewards


def test_step_rewards_add_up_to_the_outcome(scorer: Scorer) -> None:
    for result in scorer.score(SOLUTIONS):
        assert sum(result.step_rewards) == pytest.approx(result.outcome_reward, abs=1e-15)
        assert result.cumulative_rewards[-1] == result.outcome_reward


@pytest.mark.parametrize("convention", Convention)
def test_rewards_follow_from_the_logprobs(tiny_pair: Path, convention: Convention) -> None:
    with load(tiny_pair, tokens=True, convention=convention) as scorer:
        for record, result in zip(SOLUTIONS, scorer.score(SOLUTIONS), strict=True):
            assert result.token_ids is not None
            assert len(result.token_ids) == result.num_tokens
            ratios = result.policy_logprobs.astype(np.float64) - result.reference_logprobs
            assert len(ratios) == result.num_tokens - 1
            prompt = scorer.pair.encoder().encode(record.problem, record.steps, convention)
            assert (result.response_start, result.first_summed) == (
                prompt.response_start,
                prompt.first_summed,
            )
            assert result.first_summed == (0 if convention is Convention.CARD else result.response_start - 1)
            ratios[: result.first_summed] = 0
            expected = BETA * np.cumsum(ratios)[result.step_ends]
            assert np.allclose(result.cumulative_rewards, expected, rtol=0, atol=1e-12)


def test_a_result_has_the_texts_of_its_steps(scorer: Scorer) -> None:
    as_mapping = {"query": "1 + 1?", "completions": ["1 + 1 = 2.", "So 2."]}
    for record, result in zip(SOLUTIONS, scorer.score([as_mapping, *SOLUTIONS[1:]]), strict=True):
        assert result.steps == record.steps


def test_arrays_are_given_only_when_asked_for(scorer: Scorer) -> None:
    result = alone(scorer, SOLUTIONS[0])
    assert (result.token_ids, result.policy_logprobs, result.reference_logprobs) == (None, None, None)


def test_card_and_response_differ_by_the_prompts_constant(tiny_pair: Path) -> None:
    with load(tiny_pair, tokens=True) as card, load(tiny_pair, convention="response") as response:
        for record in SOLUTIONS:
            whole, part = alone(card, record), alone(response, record)
            assert whole.response_start == part.response_start
            ratios = whole.policy_logprobs.astype(np.float64) - whole.reference_logprobs
            constant = BETA * ratios[: part.first_summed].sum()
            difference = np.subtract(whole.cumulative_rewards, part.cumulative_rewards)
            assert np.allclose(difference, constant, rtol=0, atol=1e-8)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_beta_is_a_positive_number(tiny_pair: Path, beta: float) -> None:
    with pytest.raises(ValueError, match="beta is"):
        Scorer.load(tiny_pair, beta=beta)


@pytest.mark.parametrize("beta", [0.05, 1.0, 7.0])
def test_beta_scales_every_reward(tiny_pair: Path, scorer: Scorer, beta: float) -> None:
    with load(tiny_pair, beta=beta) as scaled:
        for one, other in zip(scorer.score(SOLUTIONS), scaled.score(SOLUTIONS), strict=True):
            assert np.allclose(np.multiply(one.step_rewards, beta / BETA), other.step_rewards, rtol=1e-9)


@pytest.mark.parametrize(
    "precision",
    [Precision.FP32, Precision.INT8, Precision.INT4],
)
def test_equal_models_give_exactly_zero(
    tiny_checkpoints: Checkpoints, tmp_path: Path, precision: Precision
) -> None:
    model = tiny_checkpoints.policy
    pair = export_unmeasured(model, model, tmp_path / "pair", ExportOptions(precision))
    with load(pair.path) as scorer:
        for result in scorer.score(SOLUTIONS):
            assert set(result.step_rewards) == {0.0}


def test_swapped_models_flip_every_sign(
    tiny_checkpoints: Checkpoints, tmp_path: Path, scorer: Scorer
) -> None:
    models = tiny_checkpoints.reference, tiny_checkpoints.policy
    swapped = export_unmeasured(*models, tmp_path / "pair", ExportOptions(Precision.FP32))
    with load(swapped.path) as other:
        for one, flipped in zip(scorer.score(SOLUTIONS), other.score(SOLUTIONS), strict=True):
            assert one.cumulative_rewards == [-reward for reward in flipped.cumulative_rewards]


# Numbers that must not be returned


@pytest.mark.parametrize("model", ["policy", "reference"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_logprob_that_is_not_finite_is_an_error_of_its_record_alone(
    tiny_pair: Path, tiny_engine: Engine, scorer: Scorer, model: str, value: float
) -> None:
    def spoil(batch: Batch, logprobs: PairLogprobs) -> None:
        logprobs[model][batch.target_of[1][-5]] = value  # type: ignore[literal-required]

    broken = load(tiny_pair, engine=WatchedEngine(tiny_engine, spoil))
    outcomes = [outcome for _, outcome in broken.stream(enumerate(SOLUTIONS))]
    assert isinstance(outcomes[1], NonFinite)
    assert f"token {alone(scorer, SOLUTIONS[1]).num_tokens - 5} " in outcomes[1].message
    del outcomes[1]
    assert outcomes == [result for index, result in enumerate(scorer.score(SOLUTIONS)) if index != 1]


# Fingerprint


def test_the_fingerprint_is_that_of_the_same_choices(tiny_pair: Path, scorer: Scorer) -> None:
    with load(tiny_pair, max_batch_tokens=100, threads=1, tokens=True) as other:
        assert other.fingerprint() == scorer.fingerprint()


@pytest.mark.parametrize("choices", [{"beta": 0.05}, {"convention": "exact"}])
def test_the_fingerprint_changes_with_what_numbers_depend_on(
    tiny_pair: Path, scorer: Scorer, choices: dict[str, object]
) -> None:
    with load(tiny_pair, **choices) as other:
        assert other.fingerprint() != scorer.fingerprint()


def test_the_fingerprint_changes_with_the_pair(pair_of: Callable[..., Path], scorer: Scorer) -> None:
    with load(pair_of(Precision.INT8)) as other:
        assert other.fingerprint() != scorer.fingerprint()


# Opening and closing


def test_a_context_closes_the_engine_that_it_was_given(tiny_pair: Path, tiny_engine: Engine) -> None:
    given_engine = WatchedEngine(tiny_engine)
    with load(tiny_pair, engine=given_engine) as scorer:
        assert scorer.provider is given_engine.provider
        assert not given_engine.closed
    assert given_engine.closed


@pytest.mark.parametrize("choices", [{"convention": "cards"}, {"provider": "tpu"}, {"residency": "some"}])
def test_load_rejects_unknown_choices(tiny_pair: Path, choices: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"'{next(iter(choices.values()))}' is not a valid "):
        load(tiny_pair, **choices)


# Memory

MEASURE = """
import sys
from stepscore.scorer import Scorer

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

with Scorer.load(sys.argv[1]) as scorer:
    idle = memory("VmRSS")
    (result,) = scorer.score([{"problem": "p", "steps": ["1+" * ((4096 - 100) // 2)]}])
    print(result.num_tokens, memory("VmHWM") - idle)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
def test_full_logits_never_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens by 151,936 columns are 2.5 GB of fp32; 400 MB are the limit for everything.

    int8 needs more than fp32 does: 211 MB and 128 MB were measured with 128 hidden values, twice those here.
    """
    shape = replace(TINY, num_hidden_layers=1, vocab_size=151_936, max_position_embeddings=4096)
    monkeypatch.setattr(pair_module, "run_selftest", lambda *_: Selftest("cpu", 1, 0.0, 0.0))
    model = write_checkpoint(tmp_path / "model", shape, seed=1)
    pair = export_unmeasured(model, model, tmp_path / "pair", ExportOptions(Precision.INT8))
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(pair.path)], check=True, capture_output=True, text=True
    )
    tokens, kilobytes = map(int, measured.stdout.split())
    assert 4000 < tokens <= 4096
    assert kilobytes < 400_000


# After close


def test_a_closed_scorer_says_so(tiny_pair: Path) -> None:
    scorer = Scorer.load(tiny_pair, max_batch_tokens=1)
    begun = scorer.stream(enumerate(SOLUTIONS))
    next(begun)
    scorer.close()
    scorer.close()
    for use in (lambda: scorer.score(SOLUTIONS), lambda: next(scorer.stream([])), lambda: list(begun)):
        with pytest.raises(ScorerClosed, match="the scorer is closed"):
            use()


def test_a_reward_that_is_infinite_is_the_error_of_its_record(tiny_pair: Path) -> None:
    with Scorer.load(tiny_pair, beta=1.7e308) as scorer:
        ((_, outcome),) = scorer.stream([(0, SOLUTIONS[0])])
    assert isinstance(outcome, NonFinite)

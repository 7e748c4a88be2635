"""What a pair's fidelity is, and on what texts it is measured."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import CHATML
from testing.checkpoints import tiny_tokenizer
from testing.shared_data import SHARED_DATA

from stepscore.errors import ExportError
from stepscore.prompt.encoder import PromptEncoder
from stepscore_export.fidelity import Ends, Scores, as_float64, fidelity, halving_threshold, step_sums
from stepscore_export.validation.texts import bundled_texts, encode_texts, read_texts

# The numbers


def random_scores(seed: int, sequences: int = 5) -> tuple[Scores, list[Ends]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 30, sequences)
    scores = [(-random.exponential(1, n), -random.exponential(1, n)) for n in lengths]
    return scores, [np.sort(random.choice(n, 3, replace=False)) for n in lengths]


def shifted(scores: Scores, by: float, seed: int = 9) -> Scores:
    random = np.random.default_rng(seed)
    return [(policy + by * random.standard_normal(policy.shape), reference) for policy, reference in scores]


SEEDS = st.integers(0, 1000)


@given(SEEDS)
def test_the_truth_agrees_with_itself(seed: int) -> None:
    truth, ends = random_scores(seed)
    found = fidelity(truth, truth, ends)
    assert (found.logprob_rms, found.ratio_error, found.step_error, found.cumulative_error) == (0, 0, 0, 0)
    assert (found.step_signs, found.first_errors) == (1, 1)
    assert found.correlation == pytest.approx(1)


@given(SEEDS)
def test_counts_are_those_of_log_probs_and_steps(seed: int) -> None:
    truth, ends = random_scores(seed)
    found = fidelity(truth, truth, ends)
    assert found.num_sequences == 5
    assert found.num_steps == 15
    assert found.num_tokens == sum(len(policy) for policy, _ in truth)


@given(SEEDS, st.floats(0.01, 2))
def test_a_relative_error_scales_with_the_error(seed: int, factor: float) -> None:
    truth, ends = random_scores(seed)
    scaled = [(reference + (1 + factor) * (policy - reference), reference) for policy, reference in truth]
    found = fidelity(scaled, truth, ends)
    for error in (found.ratio_error, found.step_error, found.cumulative_error):
        assert error == pytest.approx(factor)
    assert found.correlation == pytest.approx(1)
    assert found.step_signs == 1


@given(SEEDS)
def test_common_error_of_both_models_cancels_in_log_ratios(seed: int) -> None:
    truth, ends = random_scores(seed)
    found = fidelity([(policy + 0.25, reference + 0.25) for policy, reference in truth], truth, ends)
    assert found.logprob_rms == pytest.approx(0.25)
    assert found.logprob_max == pytest.approx(0.25)
    assert found.ratio_error < 1e-12


@given(SEEDS)
def test_swapping_the_models_on_both_sides_changes_nothing_but_the_first_errors(seed: int) -> None:
    truth, ends = random_scores(seed)
    scores = shifted(truth, 0.1)
    there = fidelity(scores, truth, ends, 0.0)
    back = fidelity([row[::-1] for row in scores], [row[::-1] for row in truth], ends, 0.0)
    assert asdict(replace(back, first_errors=there.first_errors)) == pytest.approx(asdict(there))


def test_swapping_the_models_on_one_side_turns_every_sign() -> None:
    truth, ends = random_scores(3)
    found = fidelity([row[::-1] for row in truth], truth, ends)
    assert found.step_signs == 0
    assert found.correlation == pytest.approx(-1)
    assert found.ratio_error == pytest.approx(2)


ENDS = [np.array([1, 3])]
ZERO: Scores = [(np.full(4, -1.0), np.full(4, -1.0))]
SOME: Scores = [(np.array([-1.0, -2.0, -3.0, -4.0]), np.full(4, -1.0))]


def test_identical_checkpoints_scored_alike_have_no_error() -> None:
    found = fidelity(ZERO, ZERO, ENDS)
    assert (found.ratio_rms, found.ratio_error, found.step_error, found.cumulative_error) == (0, 0, 0, 0)
    assert (found.correlation, found.step_signs, found.first_errors) == (1, 1, 1)


def test_an_error_relative_to_nothing_is_infinite() -> None:
    found = fidelity(SOME, ZERO, ENDS)
    assert (found.ratio_error, found.step_error, found.cumulative_error) == (np.inf, np.inf, np.inf)
    assert found.correlation == 0


def test_scores_without_a_ratio_are_all_wrong_where_the_truth_has_one() -> None:
    found = fidelity(ZERO, SOME, ENDS)
    assert (found.ratio_error, found.correlation, found.step_signs) == (1, 0, 0)


def test_a_correlation_never_leaves_its_range() -> None:
    truth, ends = random_scores(1)
    assert fidelity(shifted(truth, 1e-9), truth, ends).correlation <= 1


def test_first_errors_are_judged_at_the_threshold() -> None:
    truth: Scores = [(np.array([-1.0, -5.0]), np.zeros(2))]
    scores: Scores = [(np.array([-1.0, -2.0]), np.zeros(2))]
    ends = [np.array([0, 1])]
    assert fidelity(scores, truth, ends, -1.5).first_errors == 1
    assert fidelity(scores, truth, ends, -3.0).first_errors == 0


@given(SEEDS, st.integers(2, 9))
def test_half_of_the_sequences_fall_below_the_threshold_that_is_found(seed: int, sequences: int) -> None:
    truth, ends = random_scores(seed, sequences)
    below = [sums.min() < halving_threshold(truth, ends) for sums in step_sums(truth, ends)]
    assert sum(below) == sequences // 2


@given(SEEDS, st.integers(2, 9))
def test_rounding_errors_turn_no_decision_at_the_threshold_that_is_found(seed: int, sequences: int) -> None:
    truth, ends = random_scores(seed, sequences)
    assert fidelity(shifted(truth, 1e-12), truth, ends).first_errors == 1


def test_a_sequence_alone_is_judged_by_signs() -> None:
    assert halving_threshold(SOME, ENDS) == 0


@pytest.mark.parametrize(
    ("scores", "truth", "ends"),
    [
        ([], [], []),
        (SOME, SOME * 2, ENDS),
        (SOME, SOME, ENDS * 2),
        ([(np.zeros(3), np.zeros(5))], [(np.zeros(5), np.zeros(3))], ENDS),
    ],
)
def test_mismatched_scores_are_rejected(scores: Scores, truth: Scores, ends: list[Ends]) -> None:
    with pytest.raises(ValueError, match="sequence"):
        fidelity(scores, truth, ends)


def test_float32_scores_become_float64() -> None:
    ((policy, reference),) = as_float64([(np.zeros(2, np.float32), np.ones(2, np.float32))])
    assert policy.dtype == reference.dtype == np.float64


# The texts


def encoder(max_tokens: int) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer().to_str(), CHATML, max_tokens=max_tokens)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


GOOD = '{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}'


def test_the_bundled_texts_all_fit_a_byte_level_model_of_2048_positions() -> None:
    texts = bundled_texts()
    assert texts.name == "bundled"
    assert len(encode_texts(texts, encoder(2048))) == len(texts.records) == 12


def test_four_bundled_texts_or_more_fit_512_positions() -> None:
    assert len(encode_texts(bundled_texts(), encoder(512))) >= 4


def test_a_model_too_short_for_every_bundled_text_gets_none() -> None:
    assert encode_texts(bundled_texts(), encoder(16)) == []


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="needs the real tokenizer")
def test_the_bundled_texts_are_about_two_thousand_tokens_of_qwen() -> None:
    assert SHARED_DATA is not None
    tokenizer = (SHARED_DATA / "qwen2.5-math-tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    encoded = encode_texts(bundled_texts(), PromptEncoder(tokenizer, CHATML, max_tokens=4096))
    assert 1500 <= sum(len(prompt.token_ids) for prompt in encoded) <= 2100


def test_file_is_read_like_input_of_score(tmp_path: Path) -> None:
    alias = '{"id": 3, "query": "2 + 2?", "answer": ["4"], "label": -1}'
    texts = read_texts(write(tmp_path / "mine.jsonl", GOOD, alias))
    assert texts.name == "mine.jsonl"
    assert [record.problem for record in texts.records] == ["1 + 1?", "2 + 2?"]
    assert [len(prompt.step_ends) for prompt in encode_texts(texts, encoder(512))] == [2, 1]


@pytest.mark.parametrize("bad", ["{", '{"problem": "1 + 1?"}', '{"problem": "1", "steps": "2"}'])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ExportError, match=r"mine\.jsonl, line 2: "):
        read_texts(write(tmp_path / "mine.jsonl", GOOD, bad, GOOD))


def test_a_line_with_nothing_to_score_is_named(tmp_path: Path) -> None:
    texts = read_texts(write(tmp_path / "mine.jsonl", GOOD, '{"problem": "1 + 1?", "steps": ["2", " "]}'))
    with pytest.raises(ExportError, match=r"mine\.jsonl, record 2: steps\[1\] is white space"):
        encode_texts(texts, encoder(512))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"mine\.jsonl is empty"):
        read_texts(write(tmp_path / "mine.jsonl"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot read"):
        read_texts(tmp_path / "mine.jsonl")


def test_texts_longer_than_the_model_are_skipped(tmp_path: Path) -> None:
    long = GOOD.replace("1 + 1?", "1 + 1? " * 100)
    texts = read_texts(write(tmp_path / "mine.jsonl", long, GOOD))
    assert len(encode_texts(texts, encoder(512))) == 1


def test_file_without_fitting_texts_is_rejected(tmp_path: Path) -> None:
    texts = read_texts(write(tmp_path / "mine.jsonl", GOOD))
    with pytest.raises(ExportError, match=r"all solutions of mine\.jsonl are longer than the 16 positions"):
        encode_texts(texts, encoder(16))

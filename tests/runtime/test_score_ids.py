"""Token ids in: the log-probs of the same tokens as text gives, nothing added, nothing tokenized again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from testing.checkpoints import TINY
from testing.solutions import SOLUTIONS

from stepscore.cli.main import main
from stepscore.errors import InvalidRecord, TooLong
from stepscore.records import TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scorer import Scorer

IDS = st.lists(st.integers(0, TINY.vocab_size - 1), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def scorer(tiny_pair: Path) -> Iterator[Scorer]:
    with Scorer.load(tiny_pair, convention="exact", tokens=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(scorer: Scorer) -> list[Result]:
    return scorer.score(SOLUTIONS)


def ids_of(result: Result) -> dict[str, Any]:
    assert result.token_ids is not None
    start = result.response_start
    return {
        "prompt_token_ids": result.token_ids[:start].tolist(),
        "response_token_ids": result.token_ids[start:].tolist(),
    }


def test_ids_of_a_solution_have_the_log_probs_of_its_text(scorer: Scorer, texts: list[Result]) -> None:
    for found, text in zip(scorer.score_ids(map(ids_of, texts)), texts, strict=True):
        assert text.policy_logprobs is not None
        assert text.reference_logprobs is not None
        first = text.response_start - 1
        np.testing.assert_array_equal(found.policy_logprobs, text.policy_logprobs[first:])
        np.testing.assert_array_equal(found.reference_logprobs, text.reference_logprobs[first:])
        assert found.token_rewards.dtype == np.float32
        assert len(found.token_rewards) == len(ids_of(text)["response_token_ids"])


def test_given_step_ends_give_the_rewards_of_the_text(scorer: Scorer, texts: list[Result]) -> None:
    for text in texts:
        ends = [end - (text.response_start - 1) for end in text.step_ends]
        (found,) = scorer.score_ids([ids_of(text) | {"step_ends": ends}])
        assert found.step_ends == ends
        assert found.step_rewards == text.step_rewards
        assert found.cumulative_rewards == text.cumulative_rewards
        assert found.outcome_reward == text.outcome_reward


def test_steps_are_found_where_a_blank_line_ends_them(scorer: Scorer, texts: list[Result]) -> None:
    """As the convention `exact` reads them, but that the last step takes in what follows the response."""
    for text in texts:
        ends = [end - (text.response_start - 1) for end in text.step_ends]
        (found,) = scorer.score_ids([ids_of(text)])
        assert found.step_ends[:-1] == ends[:-1]
        assert found.step_ends[-1] == len(found.token_rewards) - 1


@given(IDS, IDS, st.data())
def test_rewards_are_sums_of_the_tokens_own(
    scorer: Scorer, prompt: list[int], response: list[int], data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(response) - 1), min_size=1, max_size=5)))
    (found,) = scorer.score_ids([TokenRecord(tuple(prompt), tuple(response), tuple(ends))])
    sums = np.cumsum(found.policy_logprobs.astype(np.float64) - found.reference_logprobs)
    np.testing.assert_allclose(found.cumulative_rewards, scorer.beta * sums[ends], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.token_rewards.sum(), scorer.beta * sums[-1], rtol=1e-3, atol=1e-9)
    assert len(found.policy_logprobs) == len(found.token_rewards) == len(response)


@given(st.lists(st.tuples(IDS, IDS), min_size=2, max_size=6))
def test_items_do_not_change_each_other(scorer: Scorer, pairs: list[tuple[list[int], list[int]]]) -> None:
    records = [TokenRecord(tuple(prompt), tuple(response)) for prompt, response in pairs]
    for record, together in zip(records, scorer.score_ids(records), strict=True):
        (alone,) = scorer.score_ids([record])
        np.testing.assert_allclose(alone.token_rewards, together.token_rewards, rtol=1e-3, atol=1e-8)


def test_results_do_not_depend_on_what_a_scorer_keeps(tiny_pair: Path, texts: list[Result]) -> None:
    with Scorer.load(tiny_pair, convention="exact", tokens=True) as keeping, Scorer.load(tiny_pair) as plain:
        one, other = keeping.score_ids([ids_of(texts[0])]), plain.score_ids([ids_of(texts[0])])
    np.testing.assert_allclose(one[0].token_rewards, other[0].token_rewards, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"response_token_ids": [3, 320]},
            r"`response_token_ids\[1\]` is 320, outside the vocabulary of 320",
        ),
        ({"prompt_token_ids": [-1]}, r"`prompt_token_ids\[0\]` is -1, outside the vocabulary"),
        ({"prompt_token_ids": []}, "`prompt_token_ids` is empty"),
        ({"response_token_ids": None}, "`response_token_ids` must be a list of integers, not null"),
        ({"response_token_ids": "12"}, "must be a list of integers, not a string"),
        ({"response_token_ids": [1.5]}, r"`response_token_ids\[0\]` must be an integer, not a number"),
        ({"response_token_ids": [True]}, "must be an integer, not a boolean"),
        ({"step_ends": [1, 0]}, r"`step_ends\[1\]` is 0: step ends do not decrease and are in 0\.\.1"),
        ({"step_ends": [2]}, r"`step_ends\[0\]` is 2"),
        ({"step_ends": []}, "`step_ends` is empty"),
    ],
)
def test_a_bad_item_is_an_error_of_its_own(scorer: Scorer, changed: dict[str, Any], said: str) -> None:
    good = {"prompt_token_ids": [5, 6], "response_token_ids": [7, 8]}
    with pytest.raises(InvalidRecord, match=f"item 1: .*{said}"):
        scorer.score_ids([good, good | changed])


def test_an_item_that_is_too_long_is_its_error(scorer: Scorer) -> None:
    most = TINY.max_position_embeddings
    item = {"prompt_token_ids": [1], "response_token_ids": np.ones(most, np.int64)}
    with pytest.raises(TooLong):
        scorer.score_ids([item])


def test_texts_and_ids_are_scored_in_one_stream(scorer: Scorer, texts: list[Result]) -> None:
    ids = TokenRecord.of(ids_of(texts[0]))
    outside = TokenRecord((5, 6), (7, TINY.vocab_size))
    outcomes = [outcome for _, outcome in scorer.stream(enumerate([ids, SOLUTIONS[0], outside, ids]))]
    first, text, error, last = outcomes
    assert isinstance(first, TokenResult)
    assert isinstance(text, Result)
    assert isinstance(error, InvalidRecord)
    assert isinstance(last, TokenResult)
    assert text.policy_logprobs is not None
    for found in (first, last):
        np.testing.assert_array_equal(found.policy_logprobs, text.policy_logprobs[text.response_start - 1 :])


def test_the_command_writes_what_score_ids_returns(
    tiny_pair: Path, tmp_path: Path, texts: list[Result]
) -> None:
    """Bit for bit; an id outside the vocabulary is that line's error."""
    records = [ids_of(text) for text in texts]
    records[1]["step_ends"] = [0, 3]
    bad = {"prompt_token_ids": [1], "response_token_ids": [TINY.vocab_size]}
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in [*records, bad]))
    done = CliRunner().invoke(main, ["score", str(tiny_pair), str(tmp_path / "in"), "--tokens"])
    _header, *lines, error = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.exit_code, error["error"]["code"]) == (1, "invalid_record")
    assert f"outside the vocabulary of {TINY.vocab_size} tokens" in error["error"]["message"]
    with Scorer.load(tiny_pair, tokens=True) as scorer:
        for line, found in zip(lines, scorer.score_ids(records), strict=True):
            for name in ("policy_logprobs", "reference_logprobs", "token_rewards"):
                np.testing.assert_array_equal(np.array(line[name], np.float32), getattr(found, name))
            for name in ("step_ends", "cumulative_rewards", "step_rewards", "outcome_reward"):
                assert line[name] == getattr(found, name)

"""The public names as a typed program uses them: checked by mypy (`make types`), never run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, assert_type

from stepscore import (
    AsyncScorer,
    Convention,
    Provider,
    Record,
    Result,
    RewardModel,
    Scorer,
    StepscoreError,
    TokenResult,
    aggregate,
    best_of_n,
    choose_threshold,
    first_error,
    majority,
    processbench_f1,
    weighted_best_of_n,
)


def score(pair: Path, records: Iterable[Record]) -> list[list[float]]:
    with Scorer.load(pair, provider=Provider.CPU, convention=Convention.RESPONSE) as scorer:
        assert_type(scorer, Scorer)
        results = scorer.score([*records, {"problem": "1 + 1?", "steps": ["2"]}])
        assert_type(results, list[Result])
        for key, outcome in scorer.stream(enumerate(records)):
            assert_type(key, int)
            if isinstance(outcome, StepscoreError):
                assert_type(outcome.hint, str | None)
        return [result.step_rewards for result in results]


def show(pair: Path, records: list[Record]) -> list[dict[str, Any]]:
    with Scorer.load(pair, memory_limit="4GB") as scorer:
        results = scorer.score(records, progress=True)
        assert_type(results[0].steps, tuple[str, ...])
        assert_type(results[0] == results[-1], bool)
        of_ids = scorer.score_ids([{"prompt_token_ids": [1], "response_token_ids": [2]}], progress=True)
        assert_type(of_ids, list[TokenResult])
        return [*(each.to_dict() for each in results), *(each.to_dict() for each in of_ids)]


async def serve(pair: Path, record: Record) -> Result:
    async with AsyncScorer.load(pair, memory_limit="4GB") as scorer:
        return await scorer.score(record, timeout=1.0)


def search(scorer: Scorer, question: str, beams: list[str]) -> list[list[list[float]]]:
    model = RewardModel(scorer)
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": beams[0]}]
    assert_type(model(question, ["1 + 1 = 2"], finished=False), list[float])
    assert_type(model.score_messages(conversation), list[float])
    assert_type(model.score_messages([conversation]), list[list[float]])
    assert_type(model.score([question], [beams], default=None), list[list[list[float] | None]])
    assert_type(model(question, ["2"], default=-1.0), list[float] | float)
    return model.score([question], [beams])


def select(rewards: list[list[float]], answers: list[str]) -> list[int]:
    scores = [aggregate(each, "min") for each in rewards]
    return [best_of_n(scores), majority(answers), weighted_best_of_n(scores, answers)]


def evaluate(rewards: list[list[float]], labels: list[int]) -> float:
    threshold = choose_threshold(rewards, labels)
    assert_type(threshold, float)
    found = [first_error(each, threshold) for each in rewards]
    return processbench_f1(found, labels).f1

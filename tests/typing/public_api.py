"""The public names as a typed program uses them: checked by mypy (`make types`), never run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import assert_type

from stepscore import (
    Convention,
    Provider,
    Record,
    Result,
    RewardModel,
    Scorer,
    StepscoreError,
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

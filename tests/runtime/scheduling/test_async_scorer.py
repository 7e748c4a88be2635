"""The asyncio face: many tasks, one engine; cancelling, errors and deadlines of each task."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from testing.solutions import SOLUTIONS
from testing.watched import Watched

from stepscore import AsyncScorer
from stepscore.engine.base import Engine
from stepscore.errors import DeadlineExceeded, InvalidRecord, NoSteps, ScorerClosed
from stepscore.records import Record
from stepscore.results import Result
from stepscore.scheduling.observer import Dropped, Observer
from stepscore.scheduling.requests import Request


class Drops(Observer):
    def __init__(self) -> None:
        self.reasons: list[Dropped] = []

    def dropped(self, reason: Dropped) -> None:
        self.reasons.append(reason)


def test_many_tasks_get_the_rewards_of_a_scorer(tiny_pair: Path, tiny_engine: Engine) -> None:
    async def ask(watched: Watched) -> list[Result]:
        async with AsyncScorer(watched.scorer) as scorer:
            return await asyncio.gather(*(scorer.score(record) for record in SOLUTIONS * 5))

    watched = Watched(tiny_pair, tiny_engine)
    alone = [result.outcome_reward for result in watched.scorer.score(SOLUTIONS)]
    results = asyncio.run(ask(watched))
    assert [result.outcome_reward for result in results] == pytest.approx(alone * 5, abs=1e-7)
    assert watched.engine.closed
    assert len(watched.engine.windows) < 20  # tasks share windows


def test_ids_and_mappings_are_scored_as_by_a_scorer(tiny_pair: Path) -> None:
    async def ask() -> None:
        async with AsyncScorer.load(tiny_pair, convention="exact") as scorer:
            item = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5]}
            result = await scorer.score({"question": "1?", "answer": ["1."]}, tokens=True)
            assert result.token_ids is not None
            ids = await scorer.score_ids(item)
            (again,) = scorer.scorer.score_ids([item])
            assert ids.token_rewards.tolist() == pytest.approx(again.token_rewards.tolist(), abs=1e-7)

    asyncio.run(ask())


def test_an_error_is_its_own_task_s(tiny_pair: Path, tiny_engine: Engine) -> None:
    async def ask() -> None:
        async with AsyncScorer(Watched(tiny_pair, tiny_engine).scorer) as scorer:
            outcomes = await asyncio.gather(
                scorer.score(SOLUTIONS[0]), scorer.score(Record("1?", ())), return_exceptions=True
            )
            assert isinstance(outcomes[0], Result)
            assert isinstance(outcomes[1], NoSteps)
            with pytest.raises(InvalidRecord):
                await scorer.score({"problem": "1?"})
            given = InvalidRecord("line 3")
            assert (await scorer.outcomes([given, Request(SOLUTIONS[0])]))[0] is given
        with pytest.raises(ScorerClosed):
            await scorer.score(SOLUTIONS[0])

    asyncio.run(ask())


def test_a_cancelled_task_and_one_past_its_deadline_leave_the_others_alone(
    tiny_pair: Path, tiny_engine: Engine
) -> None:
    gate = threading.Event()
    watched = Watched(tiny_pair, tiny_engine)
    watched.engine.change = lambda *_: gate.wait()  # type: ignore[assignment,return-value]

    async def ask() -> None:
        drops = Drops()
        async with AsyncScorer(watched.scorer, observer=drops) as scorer:
            kept, gone = (asyncio.create_task(scorer.score(record)) for record in SOLUTIONS[:2])
            with pytest.raises(DeadlineExceeded):
                await scorer.score(SOLUTIONS[2], timeout=0.01)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            gate.set()
            assert isinstance(await kept, Result)
        assert sorted(drops.reasons) == [Dropped.ABANDONED, Dropped.DEADLINE]

    asyncio.run(ask())

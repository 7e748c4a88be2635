"""The scheduler: every accepted request is answered once, with its own rewards, whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.hypothesis_profiles import examples
from testing.solutions import SOLUTIONS
from testing.watched import Watched

from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, PairLogprobs
from stepscore.errors import (
    DeadlineExceeded,
    InvalidRecord,
    Overloaded,
    RunFailed,
    ScorerClosed,
    StepscoreError,
    TooLong,
)
from stepscore.records import Record, TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.observer import Dropped, Observer
from stepscore.scheduling.requests import Answer, Request
from stepscore.scheduling.scheduler import Scheduler

WAIT = 60.0
"""Seconds after which a test gives up; none takes one."""


class Counts(Observer):
    """What was observed."""

    def __init__(self) -> None:
        self.refusals = 0
        self.drops: list[Dropped] = []
        self.windows: list[tuple[int, int]] = []

    def refused(self, requests: int) -> None:
        self.refusals += requests

    def dropped(self, reason: Dropped) -> None:
        self.drops.append(reason)

    def window(self, tokens: int, computed_tokens: int, waited: list[float]) -> None:
        self.windows.append((tokens, computed_tokens))


class Held(Watched):
    """A scheduler over an open engine that computes nothing while `gate` is closed."""

    def __init__(self, pair: Path, engine: Engine, **limits: int) -> None:
        super().__init__(pair, engine, max_batch_tokens=64)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.engine.change = self._hold
        self.counts = Counts()
        self.scheduler = Scheduler(self.scorer, observer=self.counts, **limits)

    def _hold(self, batch: Batch, logprobs: PairLogprobs) -> None:
        self.entered.release()
        assert self.gate.wait(WAIT)

    def occupy(self) -> None:
        """Close the gate and have the engine wait before it."""
        self.gate.clear()
        self.scheduler.submit([request(0)])
        assert self.entered.acquire(timeout=WAIT)

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests are tokenized."""
        ended = time.monotonic() + WAIT
        while len(self.scheduler._waiting) != count:
            assert time.monotonic() < ended
            time.sleep(0.001)


@pytest.fixture
def held(tiny_pair: Path, tiny_engine: Engine) -> Iterator[Held]:
    opened = Held(tiny_pair, tiny_engine)
    yield opened
    opened.gate.set()
    opened.scheduler.close()


def request(index: int) -> Request:
    return Request.of(SOLUTIONS[index % len(SOLUTIONS)])


def outcome_rewards(answers: list[Answer]) -> list[float]:
    rewards = []
    for answer in answers:
        assert isinstance(answer, Result | TokenResult), answer
        rewards.append(answer.outcome_reward)
    return rewards


def test_calls_of_many_threads_get_the_rewards_of_a_scorer(held: Held) -> None:
    alone = [result.outcome_reward for result in held.scorer.score(SOLUTIONS)]

    def ask(index: int) -> Answer:
        (answer,) = held.scheduler.submit([request(index)]).done.result(WAIT)
        return answer

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(ask, range(4 * len(SOLUTIONS))))
    assert outcome_rewards(answers) == pytest.approx(alone * 4, abs=1e-7)


def test_texts_ids_and_errors_of_one_call_are_answered_in_its_order(held: Held) -> None:
    wrong = InvalidRecord("no record")
    long = Record("1", ("x " * 10_000,))
    asked = [Request(TokenRecord((1, 2), (3, 4))), wrong, Request(long), Request(SOLUTIONS[0], tokens=True)]
    ids, given, too_long, text = held.scheduler.submit(asked).done.result(WAIT)
    assert isinstance(ids, TokenResult)
    assert given is wrong
    assert isinstance(too_long, TooLong)
    assert isinstance(text, Result)
    assert text.policy_logprobs is not None
    assert len(text.policy_logprobs) == text.num_tokens - 1
    assert held.scheduler.submit([wrong]).done.result(WAIT) == [wrong]
    assert held.scheduler.submit([]).done.result(WAIT) == []


def test_what_waits_while_the_engine_is_busy_is_one_window_with_problems_together(held: Held) -> None:
    held.occupy()
    first, second = Record("1 + 1?", ("2.",)), Record("2 + 2?", ("4.",))
    calls = [held.scheduler.submit([Request(record)]) for record in (first, second, first, second)]
    held.until_waiting(4)
    held.gate.set()
    for call in calls:
        call.done.result(WAIT)
    assert len(held.engine.windows) == 2
    tokens, computed = held.counts.windows[1]
    assert computed < tokens / 2 + 10  # each problem, and its equal solution, is computed once
    assert sum(call.computed_tokens for call in calls) == pytest.approx(computed, abs=len(calls))
    assert all(call.queue_seconds > 0 for call in calls)


def test_a_request_that_nobody_waits_for_is_not_computed(held: Held) -> None:
    held.occupy()
    kept, gone = held.scheduler.submit([request(1)]), held.scheduler.submit([request(2), request(3)])
    held.until_waiting(3)
    held.scheduler.abandon(gone)
    assert held.scheduler.snapshot().waiting_requests == 1
    held.gate.set()
    outcome_rewards(kept.done.result(WAIT))
    assert all(isinstance(answer, ScorerClosed) for answer in gone.done.result(WAIT))
    assert held.counts.drops == [Dropped.ABANDONED] * 2


def test_a_running_window_ends_with_the_batch_after_which_nobody_waits(held: Held) -> None:
    held.occupy()
    call = held.scheduler.submit([request(index) for index in range(4)])
    held.until_waiting(4)
    held.gate.set()
    held.gate.clear()
    assert held.entered.acquire(timeout=WAIT)  # the first of its batches
    batches = len(held.engine.windows[-1])
    assert batches > 2
    computed = held.engine.computed
    held.scheduler.abandon(call)
    held.gate.set()
    outcome_rewards(held.scheduler.submit([request(0)]).done.result(WAIT))
    assert held.engine.computed - computed < batches


def test_a_deadline_that_passed_is_answered_when_a_window_is_formed_or_when_asked(held: Held) -> None:
    held.occupy()
    late = held.scheduler.submit([request(1)], timeout=0.0)
    waiting = held.scheduler.submit([request(2)], timeout=WAIT)
    held.until_waiting(2)
    held.scheduler.expire(waiting)
    (answer,) = waiting.done.result(WAIT)  # the engine is still busy
    assert isinstance(answer, DeadlineExceeded)
    held.gate.set()
    (answer,) = late.done.result(WAIT)
    assert isinstance(answer, DeadlineExceeded)
    assert held.counts.drops == [Dropped.DEADLINE] * 2


def test_calls_are_refused_by_an_upper_estimate_that_is_mended_once_tokenized(
    tiny_pair: Path, tiny_engine: Engine
) -> None:
    held = Held(tiny_pair, tiny_engine, max_waiting_tokens=100)
    held.occupy()
    text = Record("1 " * 50, ("2 " * 50,))
    accepted = held.scheduler.submit([Request(text)])
    held.until_waiting(1)
    waiting = held.scheduler.snapshot().waiting_tokens
    assert 100 <= waiting == held.scorer.encoded(None, text).num_tokens
    with pytest.raises(Overloaded, match=f"{waiting} tokens wait, of 100") as refused:
        held.scheduler.submit([Request(text)])
    assert refused.value.retry_after > 0
    assert held.counts.refusals == 1
    held.gate.set()
    outcome_rewards(accepted.done.result(WAIT))
    large = held.scheduler.submit([request(index) for index in range(20)])  # nothing waits: any size goes
    outcome_rewards(large.done.result(WAIT))
    assert held.scheduler.snapshot().waiting_tokens == 0
    held.scheduler.close()


def test_a_run_that_fails_is_the_answer_of_its_window_alone(held: Held) -> None:
    held.engine.error = MemoryError
    (answer,) = held.scheduler.submit([request(0)]).done.result(WAIT)
    assert isinstance(answer, RunFailed)
    assert "MemoryError" in answer.message
    held.engine.error = None
    outcome_rewards(held.scheduler.submit([request(0)]).done.result(WAIT))


def test_draining_answers_what_was_accepted_and_refuses_more(held: Held) -> None:
    held.occupy()
    calls = [held.scheduler.submit([request(index)]) for index in range(5)]
    assert not held.scheduler.drain(0.0)
    assert held.scheduler.snapshot().draining
    with pytest.raises(ScorerClosed, match="accepts no request"):
        held.scheduler.submit([request(0)])
    held.gate.set()
    assert held.scheduler.drain(WAIT)
    for call in calls:
        outcome_rewards(call.done.result(WAIT))


def test_closing_answers_what_is_left(tiny_pair: Path, tiny_engine: Engine) -> None:
    held = Held(tiny_pair, tiny_engine)
    held.occupy()
    calls = [held.scheduler.submit([request(index)]) for index in range(5)]
    threading.Timer(0.05, held.gate.set).start()
    held.scheduler.close()
    answers = [answer for call in calls for answer in call.done.result(WAIT)]
    assert {type(answer) for answer in answers} == {ScorerClosed}
    assert held.engine.closed
    assert held.counts.drops == [Dropped.CLOSED] * 6


ACTS = st.lists(
    st.tuples(st.sampled_from(["submit", "abandon", "expire"]), st.integers(0, 7), st.integers(1, 3)),
    max_size=25,
)


@examples(20)
@given(acts=ACTS, closes=st.booleans())
def test_every_accepted_request_has_one_answer_whatever_happens(
    tiny_pair: Path, tiny_engine: Engine, *, acts: list[tuple[str, int, int]], closes: bool
) -> None:
    held = Held(tiny_pair, tiny_engine)
    calls = []
    for act, index, count in acts:
        if act == "submit":
            calls.append((count, held.scheduler.submit([request(index + each) for each in range(count)])))
        elif calls:
            getattr(held.scheduler, act)(calls[index % len(calls)][1])
    if closes:
        held.scheduler.close()
    assert held.scheduler.drain(WAIT)
    for count, call in calls:
        answers = call.done.result(0)
        assert len(answers) == count
        for answer in answers:
            assert isinstance(answer, Result | StepscoreError)
    left = held.scheduler.snapshot()
    assert (left.waiting_requests, left.waiting_tokens) == (0, 0)
    held.scheduler.close()

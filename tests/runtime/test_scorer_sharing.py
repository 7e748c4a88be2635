"""One scorer, used by threads, streams and processes, and after its end: right numbers or a clear error."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testing.pairs import PairOf
from testing.solutions import SAMPLES, SOLUTIONS, alone, load
from testing.watched import WatchedEngine

from stepscore import AsyncScorer, Record, RewardModel, Scorer, TokenRecord
from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, PairLogprobs
from stepscore.enums import Precision, Target
from stepscore.errors import NoSteps, ScorerClosed

WAIT = 20.0
IDS = TokenRecord((1, 2, 3), (4, 5))


class OneAtATime(WatchedEngine):
    """An engine that fails where two of its batches run at once, and lets other threads try."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.running = False
        self.started = threading.Event()

    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        scored = super().run(batches)
        for _ in batches:
            assert not self.running
            self.running = True
            self.started.set()
            threading.Event().wait(0.002)
            logprobs = next(scored)
            self.running = False
            yield logprobs

    def close(self) -> None:
        assert not self.running
        super().close()


@pytest.fixture
def engine(tiny_engine: Engine) -> OneAtATime:
    return OneAtATime(tiny_engine)


# Threads and streams


def test_threads_get_the_numbers_of_one_thread(tiny_pair: Path, engine: OneAtATime) -> None:
    with load(tiny_pair, engine=engine, max_batch_tokens=100, window_tokens=200) as scorer:
        records = [*SOLUTIONS, *SAMPLES]
        expected = scorer.score(records)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: scorer.score(records), range(8)):
                assert found == expected


@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_threads_get_right_numbers_of_an_engine_that_decodes_into_one_buffer(
    pair_of: PairOf, residency: str
) -> None:
    options = {"provider": "cpu", "residency": residency, "max_batch_tokens": 100, "window_tokens": 200}
    with load(pair_of(Precision.FP16, Target.CUDA), threads=1, **options) as scorer:
        expected = scorer.score(SAMPLES)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: scorer.score(SAMPLES), range(4)):
                assert found == expected


def test_streams_of_one_scorer_may_be_read_in_turns(tiny_pair: Path, engine: OneAtATime) -> None:
    with load(tiny_pair, engine=engine, max_batch_tokens=1) as scorer:
        expected = scorer.score(SOLUTIONS)
        both = zip(scorer.stream(enumerate(SOLUTIONS)), scorer.stream(enumerate(SOLUTIONS)), strict=True)
        for (index, one), (_, other) in both:
            assert one == other == expected[index] == alone(scorer, SOLUTIONS[index])


def test_closing_waits_for_the_batch_that_another_thread_runs(tiny_pair: Path, engine: OneAtATime) -> None:
    scorer = load(tiny_pair, engine=engine, max_batch_tokens=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(scorer.score, SAMPLES * 20)
        assert engine.started.wait(WAIT)
        scorer.close()
        assert isinstance(running.exception(WAIT), ScorerClosed)
    assert engine.closed


# After close


async def _after_aclose(scorer: AsyncScorer) -> None:
    await scorer.aclose()
    await scorer.score(SOLUTIONS[0])


USES: dict[str, Callable[[Scorer], object]] = {
    "score": lambda scorer: scorer.score(SOLUTIONS),
    "score no records": lambda scorer: scorer.score([]),
    "score_ids": lambda scorer: scorer.score_ids([IDS]),
    "stream": lambda scorer: next(scorer.stream([])),
    "with": lambda scorer: scorer.__enter__(),
    "RewardModel": lambda scorer: RewardModel(scorer)("p?", ["One."], default=None),
    "AsyncScorer": lambda scorer: asyncio.run(_after_aclose(AsyncScorer(scorer))),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_scorer_says_that_it_is_closed(
    tiny_pair: Path, engine: OneAtATime, use: Callable[[Scorer], object]
) -> None:
    scorer = load(tiny_pair, engine=engine)
    scorer.close()
    with pytest.raises(ScorerClosed, match=r"^the scorer is closed$") as error:
        use(scorer)
    assert error.value.hint == "open the pair again with Scorer.load"


def test_what_was_computed_before_the_end_is_still_given(tiny_pair: Path, engine: OneAtATime) -> None:
    scorer = load(tiny_pair, engine=engine)
    expected = scorer.score(SOLUTIONS)
    begun = scorer.stream(enumerate(SOLUTIONS))
    first = next(begun)
    scorer.close()
    assert [outcome for _, outcome in [first, *begun]] == expected


# Progress


def test_a_bar_counts_the_records(
    tiny_pair: Path, tiny_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = load(tiny_pair, engine=tiny_engine)
    assert scorer.score(SOLUTIONS, progress=True) == scorer.score(SOLUTIONS)
    assert scorer.score_ids(iter([IDS]), progress=True) == scorer.score_ids([IDS])
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{len(SOLUTIONS)}/{len(SOLUTIONS)} [" in err
    assert "1record [" in err


def test_a_bar_ends_at_a_record_that_cannot_be_scored(
    tiny_pair: Path, tiny_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = load(tiny_pair, engine=tiny_engine)
    with pytest.raises(NoSteps, match=r"^record 1: "):
        scorer.score([SOLUTIONS[0], Record("p", ())], progress=True)
    assert capsys.readouterr().err.endswith("\n")


# Processes


def in_a_fork(body: Callable[[], object]) -> str:
    """Return what a fork of this process says of a call: its result, or its error and hint."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(WAIT))  # a hang is a failure, not the end of all tests
        try:
            said = repr(body())
        except BaseException as error:
            said = f"{type(error).__name__}: {error} | {getattr(error, 'hint', '')}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_a_fork_is_told_to_load_the_pair_itself(tiny_pair: Path, engine: OneAtATime) -> None:
    scorer = load(tiny_pair, engine=engine, max_batch_tokens=1)
    begun = scorer.stream(enumerate(SOLUTIONS))
    next(begun)
    ended = scorer.stream([("only", SOLUTIONS[0])])
    next(ended)
    served = AsyncScorer(scorer)
    for use in (
        lambda: scorer.score(SOLUTIONS),
        lambda: list(begun),
        lambda: list(ended),
        lambda: asyncio.run(served.score(SOLUTIONS[0])),
    ):
        said = in_a_fork(use)
        assert said.startswith(f"ScorerClosed: the scorer was opened in process {os.getpid()}, ")
        assert said.endswith("prefer the start method spawn")
    assert len(scorer.score(SOLUTIONS)) == len(SOLUTIONS)
    served.scheduler.close()


@forks
def test_a_fork_may_close_and_drop_what_it_cannot_use_and_load_its_own(tiny_pair: Path) -> None:
    """Two threads, for which a session waits when it is released."""
    scorers = [Scorer.load(tiny_pair, threads=2)]
    expected = alone(scorers[0], SOLUTIONS[0])

    def replace() -> bool:
        scorers[0].close()
        scorers[0] = Scorer.load(tiny_pair, threads=2)
        return alone(scorers[0], SOLUTIONS[0]) == expected

    assert in_a_fork(replace) == "True"
    assert alone(scorers[0], SOLUTIONS[0]) == expected
    scorers[0].close()


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_open_scorer_refuses_to_be_pickled_or_copied(
    tiny_pair: Path, engine: OneAtATime, take: Callable[[object], object]
) -> None:
    with pytest.raises(
        TypeError, match=r"a Scorer cannot be pickled or copied: .* Scorer.load in each process"
    ):
        take(load(tiny_pair, engine=engine))


def test_what_holds_a_scorer_refuses_to_be_pickled_by_the_same_error(
    tiny_pair: Path, engine: OneAtATime
) -> None:
    served = AsyncScorer(load(tiny_pair, engine=engine))
    for holder in (served, RewardModel(served.scorer)):
        with pytest.raises(TypeError, match="a Scorer cannot be pickled"):
            pickle.dumps(holder)
    served.scheduler.close()


@pytest.mark.parametrize("record", [SOLUTIONS[0], IDS, TokenRecord((1,), (2,), (0,))])
def test_records_survive_pickling(record: object) -> None:
    assert pickle.loads(pickle.dumps(record)) == record

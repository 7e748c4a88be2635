"""How a scorer reads and computes: windows, read ahead, planned together, answered batch by batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from testing.solutions import SAMPLES, SOLUTIONS, alone
from testing.watched import Watched

from stepscore.artifact.pair import Pair
from stepscore.engine.base import Engine
from stepscore.enums import Convention
from stepscore.errors import InvalidRecord
from stepscore.records import Record
from stepscore.results import Result


@pytest.fixture
def watched(tiny_pair: Path, tiny_engine: Engine) -> Callable[..., Watched]:
    return partial(Watched, tiny_pair, tiny_engine)


def test_a_window_is_filled_as_far_as_its_tokens_go(watched: Callable[..., Watched]) -> None:
    one = watched(max_batch_tokens=1, window_tokens=250)  # two records of 106 tokens
    one.scorer.score([SOLUTIONS[0]] * 5)
    assert [sum(len(batch.target_of) for batch in window) for window in one.engine.windows] == [2, 2, 1]


def test_a_window_is_never_smaller_than_a_batch(watched: Callable[..., Watched]) -> None:
    one = watched(max_batch_tokens=250, window_tokens=1)
    one.scorer.score([SOLUTIONS[0]] * 4)
    assert [len(window) for window in one.engine.windows] == [1, 1]


def test_record_longer_than_a_window_is_its_own_window(watched: Callable[..., Watched]) -> None:
    one = watched(max_batch_tokens=1, window_tokens=1)
    assert len(one.scorer.score(SOLUTIONS)) == len(one.engine.windows) == len(SOLUTIONS)


def test_one_window_is_read_ahead_in_another_thread(watched: Callable[..., Watched]) -> None:
    one = watched(max_batch_tokens=250, window_tokens=250)  # two records
    for number, _ in one.scorer.stream(one.source([SOLUTIONS[0]] * 20)):
        given = number + number % 2  # of whole windows
        assert one.read <= given + 3  # two of the next, and one to know that it is full
    assert one.read == 20
    assert threading.get_ident() not in one.readers


def test_nothing_is_read_before_the_first_result_is_asked_for(watched: Callable[..., Watched]) -> None:
    one = watched()
    stream = one.scorer.stream(one.source(SOLUTIONS))
    assert one.read == 0
    assert next(stream)[0] == 1


def test_common_prefix_of_samples_is_computed_once(watched: Callable[..., Watched]) -> None:
    """They need not be neighbours."""
    shared, apart = watched(), watched(share=False)
    tokens = sum(result.num_tokens for result in shared.scorer.score(SAMPLES))
    apart.scorer.score(SAMPLES)
    given = len(SAMPLES) * shared.scorer.pair.manifest.prefix_tokens
    assert apart.engine.rows() == tokens - given
    longest = max(result.num_tokens for result in shared.scorer.score(SAMPLES[::2]))
    assert longest < shared.engine.rows() < 0.7 * tokens


def test_response_computes_no_logprob_of_the_prompt(tiny_pair: Path, watched: Callable[..., Watched]) -> None:
    record = SOLUTIONS[0]
    one = watched(convention="response")
    encoder = Pair.open(tiny_pair).encoder()
    start = encoder.encode(record.problem, record.steps, Convention.RESPONSE).response_start
    result = alone(one.scorer, record)
    (batch,) = one.engine.windows[0]
    assert len(batch.target_ids) == result.num_tokens - start


def test_results_come_batch_by_batch(watched: Callable[..., Watched]) -> None:
    one = watched(max_batch_tokens=1, window_tokens=16_384)
    for number, _ in one.scorer.stream(enumerate(SOLUTIONS, start=1)):
        assert one.engine.computed == number
    assert len(one.engine.windows) == 1


def test_a_result_waits_for_those_before_it_and_no_other(watched: Callable[..., Watched]) -> None:
    """Batches are those of problem 0, then of problem 1; the window is 0 1 0 1 0 1."""
    scorer = watched().scorer
    longest = max(result.num_tokens for result in scorer.score(SAMPLES)) - scorer.pair.manifest.prefix_tokens
    one = watched(max_batch_tokens=longest + 40, window_tokens=16_384)
    done = [one.engine.computed for _ in one.scorer.stream(enumerate(SAMPLES))]
    assert done == [1, 2, 2, 2, 2, 2]


def test_an_error_without_a_record_before_it_comes_at_once(watched: Callable[..., Watched]) -> None:
    one = watched()
    bad = InvalidRecord("no record")
    stream = one.scorer.stream(
        (key, SOLUTIONS[0] if isinstance(record, Record) and key > 3 else bad)
        for key, record in one.source([SOLUTIONS[0]] * 9)
    )
    for number in (1, 2, 3):
        assert next(stream) == (number, bad)
    assert one.engine.windows == []
    assert isinstance(next(stream)[1], Result)


def test_stream_raises_errors_of_the_input_iterator(watched: Callable[..., Watched]) -> None:
    def source() -> Iterator[tuple[int, Record]]:
        yield 1, SOLUTIONS[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(watched().scorer.stream(source()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_engine_error_ends_the_stream_and_its_reader(
    watched: Callable[..., Watched], error: type[BaseException]
) -> None:
    one = watched(window_tokens=1, max_batch_tokens=1)

    stream = one.scorer.stream(one.source(itertools.repeat(SOLUTIONS[0])))
    next(stream)
    one.engine.error = error
    with pytest.raises(error):
        next(stream)
    assert_no_reader_is_left()


def test_abandoned_stream_reads_no_further(watched: Callable[..., Watched]) -> None:
    one = watched(window_tokens=1, max_batch_tokens=1)
    for number, _ in one.scorer.stream(one.source(itertools.repeat(SOLUTIONS[0]))):
        if number == 3:
            break
    assert_no_reader_is_left()
    assert one.read <= 3 + 2


def assert_no_reader_is_left() -> None:
    for thread in threading.enumerate():
        if thread.name == "stepscore-prefetch":
            thread.join(20)
            assert not thread.is_alive()

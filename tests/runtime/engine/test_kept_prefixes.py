"""Scoring with kept prefixes gives the numbers of scoring without, whatever is kept, evicted or abandoned."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.cuda_forms import CUDA_FORMS, a_cuda_form_of_each_kind
from testing.engine_runs import run
from testing.forms import INTEGER, a_form_of_each_kind
from testing.graphs import remove_values, without_few_queries
from testing.hostile import change_graph
from testing.pairs import PairOf
from testing.solutions import load

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine.base import EngineOptions
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.cuda.hardware import host_hardware
from stepscore.engine.element_types import FLOAT16
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Provider, Residency, Target
from stepscore.errors import DoesNotFit, PairIncompatible
from stepscore.memory.kept import bytes_per_kept_token
from stepscore.records import Record, TokenRecord
from stepscore.results import Result
from stepscore.scorer import Scorer
from stepscore_export.options import ExportOptions

STEPS = ["1 + 1 = 2.", "So 2.", "Then, at some length, the same once more.", "5"]
PROBLEMS = ["1 + 1?", "1 + 1 + 1?", "x?"]
Texts = list[tuple[int, list[int]]]
texts = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1, max_size=4)), min_size=1, max_size=5
)


def record(problem: int, steps: Sequence[int], *, unfinished: bool = True) -> Record:
    return Record(PROBLEMS[problem], tuple(STEPS[index] for index in steps), unfinished=unfinished)


def cache_of(pair: Path, tokens: int) -> int:
    """Return the bytes in which so many tokens are kept."""
    return tokens * bytes_per_kept_token(Pair.open(pair).manifest, element_bytes=4)


def logprobs(scorer: Scorer, records: Sequence[Record]) -> np.ndarray:
    results = scorer.score(records)
    return np.concatenate([each for one in results for each in (one.policy_logprobs, one.reference_logprobs)])


@pytest.fixture(scope="module")
def plain(tiny_pair: Path) -> Iterator[Scorer]:
    with load(tiny_pair, tokens=True, threads=1) as scorer:
        yield scorer


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(calls=st.lists(texts, min_size=2, max_size=5), tokens=st.integers(5, 200), ends=st.booleans())
def test_any_calls_give_the_numbers_of_calls_without_a_cache(
    tiny_pair: Path, plain: Scorer, calls: list[Texts], tokens: int, ends: bool
) -> None:
    options = {"prefix_cache": cache_of(tiny_pair, tokens), "max_batch_tokens": 60, "threads": 1}
    with load(tiny_pair, tokens=True, **options) as scorer:
        for call in calls:
            records = [record(*text, unfinished=not ends) for text in call]
            found, truth = logprobs(scorer, records), logprobs(plain, records)
            np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5)
        counts = scorer.kept_prefixes
        assert counts is not None
        assert 0 < counts.kept <= counts.capacity == tokens


@a_form_of_each_kind
def test_a_growing_text_gives_the_same_numbers_in_every_form(pair_of: PairOf, form: ExportOptions) -> None:
    pair = pair_of.form(form)
    calls = [[record(0, [0, 1, 2][:end]), record(0, [0, 3, 1][:end]), record(2, [2])] for end in (1, 2, 3)]
    with load(pair, tokens=True) as plain, load(pair, tokens=True, prefix_cache="20MB") as scorer:
        for call in calls:
            np.testing.assert_allclose(logprobs(scorer, call), logprobs(plain, call), rtol=0, atol=0.02)
        counts = scorer.kept_prefixes
        assert counts is not None
        assert counts.given > counts.computed / 2


@a_cuda_form_of_each_kind
def test_pairs_for_cuda_keep_prefixes_too(pair_of: PairOf, form: str) -> None:
    pair = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    rng = np.random.default_rng(3)
    whole = rng.integers(3, 200, (2, 60))
    for hardware in (None, host_hardware(FLOAT16)):
        options = EngineOptions(Provider.CPU, Residency.RESIDENT, prefix_cache=1 << 20)
        engine, plain = (
            CudaEngine(pair, options, hardware),
            CudaEngine(pair, EngineOptions(Provider.CPU), hardware),
        )
        before = engine.device_bytes
        for end in (20, 35, 36, 60):
            sequences = [each[:end] for each in whole]
            found, truth = (each.logprobs(sequences) for each in (engine, plain))
            bound = 1e-5 if hardware is None else 0.02
            np.testing.assert_allclose(np.stack(found), np.stack(truth), rtol=0, atol=bound)
        assert engine.device_bytes == before
        batch = pack([whole[0]], [0], given=engine.given)
        assert len(batch.input_ids) == 1
        engine.close()
        plain.close()


def test_threads_and_abandoned_streams_change_no_number(tiny_pair: Path, plain: Scorer) -> None:
    """Their batches alternate in a cache that has room for a few of their texts."""
    scorer = load(tiny_pair, tokens=True, prefix_cache=cache_of(tiny_pair, 120), max_batch_tokens=40)
    faults: list[BaseException] = []

    def search(problem: int) -> None:
        try:
            for end in (1, 2, 3, 4):
                records = [record(problem, [first, 1, 2, 3][:end]) for first in (0, 3)]
                with_stream = scorer.stream(enumerate(records))
                _, outcome = next(with_stream)
                with_stream.close()
                assert isinstance(outcome, Result)
                np.testing.assert_allclose(
                    logprobs(scorer, records), logprobs(plain, records), rtol=0, atol=1e-5
                )
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=search, args=(problem,)) for problem in (0, 1, 2, 0)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    scorer.close()
    assert not faults, faults[0]


def test_responses_that_start_elsewhere_get_all_their_log_probs(tiny_pair: Path, plain: Scorer) -> None:
    ids = list(range(5, 25))
    items = [TokenRecord(tuple(ids[:cut]), tuple(ids[cut:])) for cut in (15, 3, 9)]
    with load(tiny_pair, prefix_cache="1MB") as scorer:
        for item in items:
            (found,), (truth,) = scorer.score_ids([item]), plain.score_ids([item])
            np.testing.assert_allclose(found.policy_logprobs, truth.policy_logprobs, rtol=0, atol=1e-5)


def test_a_batch_that_fails_keeps_nothing(tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OrtEngine(Pair.open(tiny_pair), EngineOptions(prefix_cache=1 << 20))
    batch = pack([np.arange(5, 25)], [0], given=engine.given)
    with monkeypatch.context() as patched:
        patched.setattr("stepscore.engine.ort.model_runner.logprobs_of", lambda _parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.run([batch]))
    assert engine.given.counts.kept == 0  # type: ignore[attr-defined]
    (found,), (truth,) = engine.run([batch]), run(Pair.open(tiny_pair), [batch], Residency.RESIDENT)
    np.testing.assert_allclose(found["policy"], truth["policy"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("residency", [Residency.STREAM, Residency.ALTERNATE])
def test_prefixes_are_kept_with_resident_weights_only(tiny_pair: Path, residency: Residency) -> None:
    with pytest.raises(PairIncompatible, match="--prefix-cache needs --residency resident, not"):
        load(tiny_pair, prefix_cache="1MB", residency=residency)


def test_pairs_of_other_formats_name_what_they_cannot(torch_pair: Path) -> None:
    with pytest.raises(PairIncompatible, match="bitsandbytes pairs do not support --prefix-cache"):
        load(torch_pair, prefix_cache="1MB")


def test_a_cache_of_no_token_says_what_one_takes(tiny_pair: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"keeps none of the tokens, [\d,]+ bytes each"):
        load(tiny_pair, prefix_cache=100)


def without_kept(model: onnx.ModelProto) -> None:
    """Make a graph what it was before rows could be kept."""
    model.CopyFrom(without_few_queries(model))
    joined = {each.output[0] for each in model.graph.node if "kept_none" in each.input}
    for node in model.graph.node:
        for name in joined.intersection(node.input):
            node.input.remove(name)
    remove_values(model.graph, "kept")


@pytest.mark.parametrize("target", [Target.CPU, Target.CUDA])
def test_older_pairs_run_and_keep_nothing(pair_of: PairOf, tmp_path: Path, target: Target) -> None:
    pair = pair_of.form(CUDA_FORMS["fp16"][0] if target is Target.CUDA else INTEGER)
    old = tmp_path / "old"
    shutil.copytree(pair, old)
    for path in sorted(old.rglob("*.onnx")):
        change_graph(old, path.relative_to(old).as_posix(), without_kept)
    on_cpu = {"provider": Provider.CPU, "tokens": True}
    with load(old, **on_cpu) as scorer, load(pair, **on_cpu) as new:
        assert np.array_equal(logprobs(scorer, [record(0, [0, 1])]), logprobs(new, [record(0, [0, 1])]))
    with pytest.raises(PairIncompatible, match="exported before prefixes could be kept"):
        load(old, provider=Provider.CPU, prefix_cache="1MB")

"""Metrics: their names, what each counts, and the share of tokens that prefix sharing saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from testing.served import CONTEXT, ITEM, ScriptedScorer, app_of, call, client_of, score
from testing.solutions import SAMPLES
from testing.watched import Watched

from stepscore.engine.base import Engine
from stepscore.errors import TooLong
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.observer import Dropped
from stepscore.server.metrics import Metrics

NAMES = (
    *("num_requests_running", "num_requests_waiting", "request_queue_time_seconds", "iteration_tokens_total"),
    *("prefix_cache_queries", "prefix_cache_hits", "admission_rejections"),  # vLLM's
    *("request_count", "request_success", "request_failure", "batch_next_size", "batch_next_tokens"),
    *("request_duration_seconds", "request_inference_duration_seconds", "request_input_length"),  # TEI's
    *("shared_token_ratio", "build_info", "tokens_per_second"),
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"stepscore_{name}", labels)


def test_names_are_those_that_dashboards_of_vllm_and_tei_know() -> None:
    text = call(app_of(ScriptedScorer()), "GET", "/metrics").text
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    found = {family.removeprefix("stepscore_").removesuffix("_total") for family in families}
    assert {name.removesuffix("_total") for name in NAMES} <= found


def test_calls_are_counted_by_route_and_error() -> None:
    metrics = Metrics(CONTEXT)
    app = app_of(ScriptedScorer(), metrics=metrics)
    for items in ([ITEM], [ITEM, ITEM]):
        score(app, *items)
    call(app, "GET", "/secret")
    call(app, "GET", "/v1/score")
    assert value(metrics, "request_count_total", route="/v1/score") == 3
    assert value(metrics, "request_success_total", route="/v1/score") == 2
    assert value(metrics, "request_failure_total", route="/v1/score", err="method_not_allowed") == 1
    assert value(metrics, "request_failure_total", route="unknown", err="not_found") == 1
    assert value(metrics, "request_input_length_sum", route="/v1/score") == 21
    assert b"secret" not in metrics.text()


def test_gauges_are_those_of_the_scheduler_when_they_are_read() -> None:
    metrics = Metrics(CONTEXT)
    app_of(ScriptedScorer(), metrics=metrics)
    assert value(metrics, "num_requests_waiting") == 1
    assert value(metrics, "num_tokens_running") == 40
    assert value(metrics, "tokens_per_second") == 0


def test_what_a_scheduler_tells_is_counted() -> None:
    metrics = Metrics(CONTEXT)
    metrics.admitted(3, 100)
    metrics.refused(2)
    metrics.dropped(Dropped.DEADLINE)
    metrics.window(100, 60, [0.1, 0.2])
    metrics.window(100, 110, [0.3])  # padding of tiny windows may compute more than was asked for
    metrics.batch(200, 0.5)
    assert value(metrics, "admitted_requests_total") == 3
    assert value(metrics, "admission_rejections_total") == 2
    assert value(metrics, "dropped_requests_total", reason="deadline") == 1
    assert value(metrics, "request_queue_time_seconds_sum") == pytest.approx(0.6)
    assert value(metrics, "batch_next_size_count") == 2
    assert value(metrics, "prefix_cache_queries_total") == 200
    assert value(metrics, "prefix_cache_hits_total") == 40
    assert value(metrics, "shared_token_ratio") == 0.2


def test_samples_of_a_problem_share_tokens(tiny_pair: Path, tiny_engine: Engine) -> None:
    metrics = Metrics(CONTEXT)

    async def ask() -> None:
        async with AsyncScorer(Watched(tiny_pair, tiny_engine).scorer) as scorer:
            items = [{"problem": each.problem, "steps": each.steps} for each in SAMPLES]
            async with client_of(app_of(scorer, metrics=metrics)) as client:
                assert (await client.post("/v1/score", json={"items": items})).status_code == 200

    asyncio.run(ask())
    ratio = value(metrics, "shared_token_ratio")
    assert ratio is not None
    assert 0.3 < ratio < 1


def test_kept_prefixes_are_counted_where_there_is_a_cache(tiny_pair: Path) -> None:
    async def score(metrics: Metrics) -> None:
        async with AsyncScorer.load(tiny_pair, prefix_cache="1MB") as scorer:
            metrics.watch(scorer.scheduler)
            for _ in range(2):
                await scorer.score(SAMPLES[0])
            counts = scorer.scorer.kept_prefixes
            assert counts is not None
            assert value(metrics, "kept_prefix_hits_total") == counts.given > 0
            assert value(metrics, "kept_prefix_tokens") == counts.kept > counts.given / 2
            assert value(metrics, "kept_prefix_bytes") == counts.kept * counts.bytes_per_token

    metrics = Metrics(CONTEXT)
    assert value(metrics, "kept_prefix_tokens") is None
    asyncio.run(score(metrics))


def test_errors_of_items_are_no_failed_call() -> None:
    metrics = Metrics(CONTEXT)
    score(app_of(ScriptedScorer(TooLong("long")), metrics=metrics), ITEM)
    assert value(metrics, "request_success_total", route="/v1/score") == 1

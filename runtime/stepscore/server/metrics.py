"""Prometheus metrics: of calls, of the scheduler's queue and windows, and of prefix sharing.

Names follow vLLM and text-embeddings-inference, with the prefix `stepscore_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from stepscore.scheduling.observer import Dropped, Observer
from stepscore.server.envelope import Call
from stepscore.server.routes import Context

if TYPE_CHECKING:
    from stepscore.scheduling.scheduler import Scheduler
    from stepscore.scorer import Scorer

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKENS = (64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0)


class Metrics(Observer):
    """All metrics of one server, in a registry of its own."""

    def __init__(self, context: Context) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stepscore_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"stepscore_{name}", text, labels, buckets=buckets, registry=registry)

        self._calls = counter("request_count", "Calls that arrived.", "route")
        self._success = counter("request_success", "Calls that were answered with 2xx.", "route")
        self._failure = counter("request_failure", "Other calls, by error.", "route", "err")
        self._duration = histogram("request_duration_seconds", "Time of a call.", SECONDS, "route")
        self._length = histogram("request_input_length", "Tokens of a scored call.", TOKENS, "route")
        self._admitted = counter("admitted_requests", "Requests (items) that were accepted.")
        self._rejections = counter("admission_rejections", "Requests (items) refused, as too much waits.")
        self._dropped = counter("dropped_requests", "Accepted requests not computed, by reason.", "reason")
        self._queue_time = histogram("request_queue_time_seconds", "Time a request waited.", SECONDS)
        self._window_requests = histogram(
            "batch_next_size", "Requests of a window.", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
        )
        self._window_tokens = histogram("batch_next_tokens", "Tokens asked for by a window.", TOKENS)
        self._iteration_tokens = histogram("iteration_tokens_total", "Tokens answered by a batch.", TOKENS)
        self._inference = histogram("request_inference_duration_seconds", "Time of a batch.", SECONDS)
        self._asked = counter("prefix_cache_queries", "Tokens asked for.")
        self._shared = counter("prefix_cache_hits", "Tokens not computed, as their prefix was shared.")
        self._tokens = [0, 0]  # asked for, shared
        ratio = self._gauge("shared_token_ratio", "Share of tokens that prefix sharing saved, since start.")
        ratio.set_function(lambda: self._tokens[1] / max(1, self._tokens[0]))
        info = Gauge(
            "stepscore_build_info",
            "Version and pair.",
            ("version", "model", "fingerprint", "convention", "beta"),
            registry=registry,
        )
        info.labels(
            context.version, context.name, context.fingerprint, context.convention.value, repr(context.beta)
        ).set(1)

    def watch(self, scheduler: Scheduler) -> None:
        """Read the gauges of the queue from a scheduler, at each scrape, and count what it tells."""
        scheduler.observer = self
        gauges = {
            "num_requests_waiting": ("Requests that wait for a window.", attrgetter("waiting_requests")),
            "num_tokens_waiting": ("Tokens of the waiting requests.", attrgetter("waiting_tokens")),
            "num_requests_running": ("Requests of the running window.", attrgetter("running_requests")),
            "num_tokens_running": ("Tokens of the running requests.", attrgetter("running_tokens")),
            "tokens_per_second": (
                "Measured pace, 0 before the first window.",
                attrgetter("tokens_per_second"),
            ),
        }
        for name, (text, read) in gauges.items():
            self._gauge(name, text).set_function(_reader(scheduler, read))

        if scheduler.scorer.kept_prefixes is not None:
            self.registry.register(_KeptPrefixes(scheduler.scorer))

    def call(self, call: Call) -> None:
        """Count a call that has ended."""
        self._calls.labels(call.route).inc()
        self._duration.labels(call.route).observe(call.seconds)
        if call.status < 400:
            self._success.labels(call.route).inc()
        else:
            self._failure.labels(call.route, call.error or str(call.status)).inc()
        if call.tokens:
            self._length.labels(call.route).observe(call.tokens)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    # What the scheduler tells, in its threads.

    def admitted(self, requests: int, most_tokens: int) -> None:
        """Count a call that was accepted."""
        del most_tokens
        self._admitted.inc(requests)

    def refused(self, requests: int) -> None:
        """Count a call that was refused."""
        self._rejections.inc(requests)

    def dropped(self, reason: Dropped) -> None:
        """Count a request that was not computed."""
        self._dropped.labels(reason.value).inc()

    def window(self, tokens: int, computed_tokens: int, waited: list[float]) -> None:
        """Count a window that begins to run."""
        self._window_requests.observe(len(waited))
        self._window_tokens.observe(tokens)
        for seconds in waited:
            self._queue_time.observe(seconds)
        shared = max(0, tokens - computed_tokens)
        self._asked.inc(tokens)
        self._shared.inc(shared)
        self._tokens[0] += tokens
        self._tokens[1] += shared

    def batch(self, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._iteration_tokens.observe(tokens)
        self._inference.observe(seconds)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"stepscore_{name}", text, registry=self.registry)


class _KeptPrefixes(Collector):
    """Reads the counts of a scorer's prefix cache at each scrape."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def collect(self) -> Iterator[Metric]:
        """Yield how full the cache is, and how many tokens it has saved."""
        counts = self._scorer.kept_prefixes
        assert counts is not None
        name = "stepscore_kept_prefix"
        yield CounterMetricFamily(
            f"{name}_hits", "Tokens taken from prefixes of earlier calls.", counts.given
        )
        yield GaugeMetricFamily(f"{name}_tokens", "Tokens in the prefix cache.", counts.kept)
        yield GaugeMetricFamily(f"{name}_bytes", "Bytes of the tokens in it.", counts.num_bytes)


def _reader(scheduler: Scheduler, read: Callable[[Any], float | None]) -> Callable[[], float]:
    return lambda: read(scheduler.snapshot()) or 0.0

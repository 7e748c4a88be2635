"""Benchmark a pair: load time, first result, tokens per second, speedup from prefix sharing, peak memory.

Tokens are input tokens through both models: a common prefix counts in every sequence, and log-probs are
computed from the first token on. Sequences are planned into packed batches as by `Scorer`, and planning is
part of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec
import numpy as np

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import BatchGroup
from stepscore.batching.given_rows import Given
from stepscore.batching.planner import plan
from stepscore.batching.trie import Int64
from stepscore.batching.windows import fill_windows
from stepscore.engine import free_memory, open_engine
from stepscore.engine.base import Engine, EngineOptions
from stepscore.enums import Convention, Provider, Residency
from stepscore.errors import InputError
from stepscore.jobs.jsonl import not_empty, parse_line
from stepscore.machine import Machine
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import Settings
from stepscore.prompt.encoder import PromptEncoder
from stepscore.records import of_texts
from stepscore.system import available_cores, peak_memory_bytes

RANDOM_LENGTHS = (128, 512, 2048)


class Rate(msgspec.Struct, frozen=True):
    """Input tokens per second through both models: median, slowest and fastest of n repeats."""

    median: float
    slowest: float
    fastest: float
    n: int


class Timing(msgspec.Struct, frozen=True):
    """Timing of one workload; `sharing` is the speedup from prefix sharing, None without common prefixes."""

    name: str
    sequences: int
    tokens: int
    speed: Rate
    sharing: float | None


class BenchReport(msgspec.Struct, frozen=True, tag_field="command", tag="bench"):
    """Output of `stepscore bench`. Seconds are wall-clock time, `peak_mb` is the peak resident set.

    It is null on systems that do not tell it.

    `first_result_seconds`, after loading, is the first run of the first workload's first sequence; it
    includes reading weights from disk that are not in memory yet.
    """

    pair: str
    provider: str
    threads: int
    residency: Residency
    max_batch_tokens: int
    load_seconds: float
    first_result_seconds: float
    peak_mb: float | None
    timings: list[Timing]
    machine: Machine


class Workload(msgspec.Struct, frozen=True):
    """A named list of token id sequences."""

    name: str
    sequences: list[Int64]

    @property
    def tokens(self) -> int:
        """Return the number of input tokens."""
        return sum(map(len, self.sequences))


class BenchOptions(msgspec.Struct, frozen=True):
    """Options of a benchmark; None is decided by the machine, as in `Scorer.load`."""

    provider: Provider = Provider.AUTO
    threads: int | None = None
    residency: Residency = Residency.AUTO
    max_batch_tokens: int | None = None
    repeats: int = 3


def random_workloads(vocab_size: int, max_positions: int, seed: int = 0) -> list[Workload]:
    """Return one sequence of random ids for each of RANDOM_LENGTHS within the context length.

    >>> [(each.name, each.tokens) for each in random_workloads(100, 1000)]
    [('128 random tokens', 128), ('512 random tokens', 512)]
    """
    rng = np.random.default_rng(seed)
    fitting = [length for length in RANDOM_LENGTHS if length <= max_positions] or [max_positions]
    return [
        Workload(f"{length:,} random tokens", [rng.integers(0, vocab_size, length)]) for length in fitting
    ]


def text_workload(name: str, lines: Iterable[bytes], encoder: PromptEncoder) -> Workload:
    """Encode input lines; the first that cannot be scored raises its InputError, with its line number."""
    return Workload(name, [_encoded(number, line, encoder) for number, line in not_empty(lines)])


def rate(tokens: int, seconds: Sequence[float]) -> Rate:
    """Return the tokens per second over the repeats.

    >>> rate(100, [1.0, 2.0, 4.0])
    Rate(median=50.0, slowest=25.0, fastest=100.0, n=3)
    """
    each = sorted(tokens / one for one in seconds)
    return Rate(median(each), each[0], each[-1], len(each))


def measure(pair: Pair, workloads: Sequence[Workload], options: BenchOptions) -> BenchReport:
    """Open a pair and time the workloads, at least one."""
    settings = fit_settings(
        pair.manifest,
        residency=options.residency,
        max_batch_tokens=options.max_batch_tokens,
        provider=options.provider,
        available=free_memory(pair, options.provider),
    )
    engine_options = EngineOptions(
        provider=options.provider,
        residency=settings.residency,
        threads=options.threads,
        head_rows=settings.head_rows,
        resident_stages=settings.resident_stages,
    )
    started = time.perf_counter()
    engine = open_engine(pair, engine_options)
    loaded = time.perf_counter()
    engine.logprobs(workloads[0].sequences[:1])
    first_result = time.perf_counter()
    timings = [timed(engine, workload, settings, options.repeats) for workload in workloads]
    provider = engine.provider.value
    engine.close()
    peak = peak_memory_bytes()
    return BenchReport(
        pair=str(pair.path),
        provider=provider,
        threads=options.threads or available_cores(),
        residency=settings.residency,
        max_batch_tokens=settings.max_batch_tokens,
        load_seconds=loaded - started,
        first_result_seconds=first_result - loaded,
        peak_mb=None if peak is None else peak / 1e6,
        timings=timings,
        machine=Machine.of_this(Provider(provider)),
    )


def timed(engine: Engine, workload: Workload, settings: Settings, repeats: int) -> Timing:
    """Time a workload; where sequences have common prefixes, each repeat also runs without sharing."""
    shared: list[float] = []
    alone: list[float] = []
    fewest, most = (_packed_tokens(workload, settings, engine.given, share=share) for share in (True, False))
    has_shared = fewest < most
    for _ in range(repeats):
        shared.append(seconds_of(engine, workload, settings))
        if has_shared:
            alone.append(seconds_of(engine, workload, settings, share=False))
    factor = median(alone) / median(shared) if has_shared else None
    speed = rate(workload.tokens, shared)
    return Timing(workload.name, len(workload.sequences), workload.tokens, speed, factor)


def seconds_of(engine: Engine, workload: Workload, settings: Settings, *, share: bool = True) -> float:
    """Plan and run a workload once; return the seconds."""
    started = time.perf_counter()
    for window in fill_windows(workload.sequences, settings.window_tokens, len):
        groups = planned(window, settings, engine.given, share=share)
        for _ in engine.run([group.batch for group in groups]):
            pass
    return time.perf_counter() - started


def planned(
    window: Sequence[Int64], settings: Settings, given: Given, *, share: bool = True
) -> list[BatchGroup]:
    """Plan a window into batches, with all log-probs computed."""
    budget = settings.max_batch_tokens
    return plan(
        window,
        [0] * len(window),
        budget,
        share=share,
        materializes_scores=settings.materializes_scores,
        given=given,
    )


def _encoded(number: int, line: bytes, encoder: PromptEncoder) -> Int64:
    record = of_texts(parse_line(line, number - 1).record)
    try:
        if isinstance(record, InputError):
            raise record
        return encoder.encode(record.problem, record.steps, Convention.CARD).token_ids
    except InputError as error:
        raise type(error)(f"line {number}: {error.message}", hint=error.hint) from None


def _packed_tokens(workload: Workload, settings: Settings, given: Given, *, share: bool) -> int:
    """Return the number of packed tokens that a workload computes."""
    return sum(
        len(group.batch.input_ids)
        for window in fill_windows(workload.sequences, settings.window_tokens, len)
        for group in planned(window, settings, given, share=share)
    )

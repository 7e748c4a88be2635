"""Contenders in processes of their own, so that several can be loaded, take turns, and show their memory.

Only one of them is ever asked at a time; the others sleep. What a process holds is gone when it is closed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.peers.contender import Contender, Loaded, Models, PairLogprobs, Tokens
from benchmarks.support.machine import status_mb

from stepscore.errors import StepscoreError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A contender that cannot run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over some sequences: seconds inside the process, and what came out."""

    seconds: float
    logprobs: list[PairLogprobs]


class Worker:
    """A loaded contender; `load_seconds` is what loading took there, imports included."""

    def __init__(self, contender: Contender, models: Models, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child's libraries when they are imported
        self.contender = contender
        with _process() as before:  # what preparing takes is not in the memory of what is measured
            before.submit(contender.prepare, models).result()
        self._pool = _process()
        self.load_seconds: float = self._pool.submit(_load, contender, models).result()

    def run(self, sequences: Sequence[Tokens]) -> Run:
        """Score the sequences once."""
        return self._pool.submit(_run, sequences).result()

    def peak_mb(self) -> int:
        """Return the peak resident set of the process, file-mapped pages included, MB (10^6 bytes)."""
        return self._pool.submit(status_mb, "VmHWM").result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class Turns:
    """What came of one contender: seconds of each pass, the last pass's log-probs, its memory.

    `peak_mb` is the peak resident set of its process; with a gauge, what was free of it when it had ended.
    """

    name: str
    seconds: list[float]
    logprobs: list[PairLogprobs]
    load_seconds: float
    peak_mb: int


def take_turns(
    contenders: Sequence[Contender],
    models: Models,
    sequences: Sequence[Tokens],
    threads: int,
    repeats: int,
    *,
    gauge: Callable[[], int] | None = None,
) -> list[Turns | Skipped]:
    """Load all, warm each up on the first sequence, then let them score all sequences in turns.

    `gauge` says how many MB of a GPU are used, by all processes. Allocators there keep what they had until
    their process ends, so that what it gives back is its peak.
    """
    with ExitStack() as stack:
        workers = [start(contender, models, sequences[:1], threads) for contender in contenders]
        for worker in workers:
            if isinstance(worker, Worker):
                stack.callback(worker.close)
        runs: list[list[Run]] = [[] for _ in workers]
        for _ in range(repeats):
            for worker, of_worker in zip(workers, runs, strict=True):
                if isinstance(worker, Worker):
                    of_worker.append(worker.run(sequences))
        return [
            worker
            if isinstance(worker, Skipped)
            else Turns(
                worker.contender.name,
                [run.seconds for run in of_worker],
                of_worker[-1].logprobs,
                worker.load_seconds,
                worker.peak_mb() if gauge is None else given_back_mb(worker, gauge),
            )
            for worker, of_worker in zip(workers, runs, strict=True)
        ]


def given_back_mb(worker: Worker, gauge: Callable[[], int]) -> int:
    """Close a worker; return how much less is used after it than before."""
    before = gauge()
    worker.close()
    return before - gauge()


def start(contender: Contender, models: Models, warm_up: Sequence[Tokens], threads: int) -> Worker | Skipped:
    """Load a contender and let it score something once.

    A package that is missing, a library that crashes on this machine, a pair that it cannot run and a GPU
    that is full are reasons to skip it.
    """
    try:
        worker = Worker(contender, models, threads)
        worker.run(warm_up)
    except ModuleNotFoundError as error:
        return Skipped(contender.name, f"{error.name} is not installed: see `make peers`")
    except StepscoreError as error:
        return Skipped(contender.name, error.message)
    except BrokenProcessPool:
        return Skipped(contender.name, "its process crashed on this machine: see `make peers`")
    except RuntimeError as error:  # PyTorch's class for it is one of these
        if "out of memory" not in str(error):
            raise
        return Skipped(contender.name, "the GPU has not enough memory beside the others of its round")
    return worker


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


_loaded: list[Loaded] = []  # in the child: what it was started for


def _load(contender: Contender, models: Models) -> float:
    started = time.perf_counter()
    _loaded.append(contender.load(models))
    return time.perf_counter() - started


def _run(sequences: Sequence[Tokens]) -> Run:
    started = time.perf_counter()
    logprobs = _loaded[0].logprobs(sequences)
    return Run(time.perf_counter() - started, logprobs)

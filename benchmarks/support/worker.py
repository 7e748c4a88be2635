"""Run contenders in separate processes, so that several are loaded, alternate, and show their memory.

One of them runs at a time; the others sleep. Closing a process releases its memory.
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

from benchmarks.peers.contender import Checkpoints, Contender, LoadedEngine, SequenceLogprobs, Tokens
from benchmarks.support.machine import status_mb

from stepscore.errors import StepscoreError


@dataclass(frozen=True, slots=True)
class Skipped:
    """A contender that cannot run here, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over some sequences: seconds inside the process, and the log-probs."""

    seconds: float
    logprobs: list[SequenceLogprobs]


class Worker:
    """A loaded contender; `load_seconds` is the time to load it in its process, imports included."""

    def __init__(self, contender: Contender, models: Checkpoints, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child's libraries when they are imported
        self.contender = contender
        with _process() as before:  # so that memory of preparing is not measured
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
    """Passes of one contender: seconds of each, log-probs of the last, and its memory.

    `peak_mb` is the peak resident set of its process; with a gauge, the memory that its end released.
    """

    name: str
    seconds: list[float]
    logprobs: list[SequenceLogprobs]
    load_seconds: float
    peak_mb: int


def take_turns(
    contenders: Sequence[Contender],
    models: Checkpoints,
    sequences: Sequence[Tokens],
    threads: int,
    repeats: int,
    *,
    gauge: Callable[[], int] | None = None,
) -> list[Turns | Skipped]:
    """Load all contenders, warm each up on the first sequence, then have them alternate on all sequences.

    `gauge` returns the used MB of a GPU, over all processes. GPU allocators keep their memory until the
    process ends, so the memory that its end releases is its peak.
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
                worker.peak_mb() if gauge is None else released_mb(worker, gauge),
            )
            for worker, of_worker in zip(workers, runs, strict=True)
        ]


def released_mb(worker: Worker, gauge: Callable[[], int]) -> int:
    """Close a worker; return the memory that this releases, MB."""
    before = gauge()
    worker.close()
    return before - gauge()


def start(
    contender: Contender, models: Checkpoints, warm_up: Sequence[Tokens], threads: int
) -> Worker | Skipped:
    """Load a contender and have it score `warm_up` once.

    It is skipped if a package is missing, a library crashes on this machine, its pair is rejected, or the GPU
    is out of memory.
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
    except RuntimeError as error:  # torch.OutOfMemoryError is a subclass
        if "out of memory" not in str(error):
            raise
        return Skipped(contender.name, "the GPU is out of memory with the other engines of its round loaded")
    return worker


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


_loaded: list[LoadedEngine] = []  # in the child: the engine it was started for


def _load(contender: Contender, models: Checkpoints) -> float:
    started = time.perf_counter()
    _loaded.append(contender.load(models))
    return time.perf_counter() - started


def _run(sequences: Sequence[Tokens]) -> Run:
    started = time.perf_counter()
    logprobs = _loaded[0].logprobs(sequences)
    return Run(time.perf_counter() - started, logprobs)

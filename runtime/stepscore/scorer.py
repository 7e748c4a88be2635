"""The scorer: problem and steps -> token ids -> packed batches -> log-probs -> step rewards.

with Scorer.load("pair") as scorer:
    for result in scorer.score([{"problem": "1 + 1?", "steps": ["1 + 1 = 2", "So 2."]}]):
        print(result.step_rewards)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.pair import Pair
from stepscore.bar import with_bar
from stepscore.batching.kept_prefixes import KeptCounts, KeptPrefixes
from stepscore.batching.pace import STEADY, Pace
from stepscore.batching.prefetch import prefetch
from stepscore.batching.windows import Input, PlannedItem, Window, WindowPlanner
from stepscore.engine import free_memory, open_engine
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.enums import Convention, Provider, Residency
from stepscore.errors import InputError, NonFinite, ScorerClosed
from stepscore.forks import keep_in_forks
from stepscore.memory.fit import fit_settings
from stepscore.prompt.encoder import EncodedPrompt
from stepscore.records import TokenRecord
from stepscore.results import Outcome, Result, TokenOutcome, TokenResult
from stepscore.rewards import Rewards, rewards
from stepscore.sizes import parse_size

T = TypeVar("T")
Logprobs = NDArray[np.float32]
TokenInput = TokenRecord | Mapping[str, Any]
"""Token ids to score; a mapping has the fields of a TokenRecord."""


class Scorer:
    """An open pair with a convention (of `windows`) and a scale of its rewards (`beta`).

    Several threads may use one scorer, and several streams of it may be open: their batches alternate. Calls
    of an AsyncScorer are computed together instead. A fork of the process cannot use it, and it cannot be
    pickled: call `Scorer.load` in each process.
    """

    def __init__(self, pair: Pair, engine: Engine, windows: WindowPlanner, *, beta: float) -> None:
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta is {beta}; it must be a positive number")
        self.pair = pair
        self.beta = beta
        self._engine = engine
        self._windows = windows
        self._closed = False
        self._process = os.getpid()
        self._turn = threading.RLock()  # a signal handler may close what its own thread is running
        keep_in_forks(engine)

    @classmethod
    def load(
        cls,
        pair: str | Path,
        *,
        provider: Provider | str = Provider.AUTO,
        convention: Convention | str = Convention.CARD,
        beta: float | None = None,
        residency: Residency | str = Residency.AUTO,
        memory_limit: int | str | None = None,
        max_batch_tokens: int | None = None,
        window_tokens: int | None = None,
        threads: int | None = None,
        tokens: bool = False,
        share: bool = True,
        prefix_cache: int | str | None = None,
        engine: Engine | None = None,
    ) -> Scorer:
        """Open the pair in folder `pair`.

        `beta` defaults to the pair's; `tokens` keeps the log-probs in the results. Residency, batch and
        window that are not given are chosen by `memory_limit` (bytes, or a text such as "4GB") or free memory
        (see memory/); none changes a log-prob by more than rounding. `share=False` disables prefix sharing,
        for benchmarks. `prefix_cache` (bytes, or a text such as "2GB") keeps the prefixes of texts for later
        calls, whose texts continue them, as in a search; the least recently used go first. `engine` is an
        open engine of this pair, used instead of opening one with `provider`, `residency`, `threads` and
        `prefix_cache`; the scorer closes it.
        """
        if isinstance(memory_limit, str):
            memory_limit = parse_size(memory_limit)
        if isinstance(prefix_cache, str):
            prefix_cache = parse_size(prefix_cache)
        opened = Pair.open(pair)
        settings = fit_settings(
            opened.manifest,
            residency=Residency(residency),
            memory_limit=memory_limit,
            max_batch_tokens=max_batch_tokens,
            window_tokens=window_tokens,
            provider=Provider(provider),
            available=free_memory(opened, Provider(provider)),
            prefix_cache=prefix_cache or 0,
        )
        options = EngineOptions(
            provider=Provider(provider),
            residency=settings.residency,
            threads=threads,
            gpu_mem_limit=memory_limit,
            head_rows=settings.head_rows,
            resident_stages=settings.resident_stages,
            prefix_cache=settings.prefix_cache,
        )
        engine = engine or open_engine(opened, options)
        windows = WindowPlanner(
            opened.encoder(),
            Convention(convention),
            settings.max_batch_tokens,
            settings.window_tokens,
            opened.manifest.architecture.vocab_size,
            tokens=tokens,
            share=share,
            materializes_scores=settings.materializes_scores,
            given=engine.given,
        )
        beta = opened.manifest.beta if beta is None else beta
        return cls(opened, engine, windows, beta=beta)

    @property
    def provider(self) -> Provider:
        """Execution provider in use."""
        return self._engine.provider

    @property
    def convention(self) -> Convention:
        """Reward convention: where the sum starts and where a step ends."""
        return self._windows.convention

    def score(self, records: Iterable[Input], *, progress: bool = False) -> list[Result]:
        """Score all records; raise the first InputError or NonFinite, with the record's position.

        `progress` shows a bar in a notebook, or on standard error.
        """
        results = []
        outcomes = self.stream(enumerate(records))
        with closing(with_bar(outcomes, records) if progress else outcomes) as shown:
            for position, outcome in shown:
                if not isinstance(outcome, Result):
                    raise type(outcome)(f"record {position}: {outcome.message}", hint=outcome.hint)
                results.append(outcome)
        return results

    @overload
    def stream(  # type: ignore[overload-overlap]  # items that are all errors fit both
        self, items: Iterable[tuple[T, Input | InputError]], pace: Pace = STEADY
    ) -> Generator[tuple[T, Outcome]]: ...

    @overload
    def stream(
        self, items: Iterable[tuple[T, TokenRecord | InputError]], pace: Pace = STEADY
    ) -> Generator[tuple[T, TokenOutcome]]: ...

    @overload
    def stream(
        self, items: Iterable[tuple[T, Input | TokenRecord | InputError]], pace: Pace = STEADY
    ) -> Generator[tuple[T, Outcome | TokenOutcome]]: ...

    def stream(
        self, items: Iterable[tuple[T, Input | TokenRecord | InputError]], pace: Pace = STEADY
    ) -> Generator[tuple[T, Outcome | TokenOutcome]]:
        """Score (key, record) items window by window; yield (key, outcome) in input order.

        A TokenRecord gives a TokenResult, any other record a Result. An outcome is yielded as soon as it and
        all before it are computed. While a window is computed, a thread reads `items`, at most one window
        ahead. An InputError among them is yielded at its position. Windows are filled with valid records
        only, so an invalid one changes no bit of another's rewards. `pace` closes windows early where items
        arrive one by one. Raises ScorerClosed in a fork, and after `close` where a batch is not computed yet.
        """
        self.check_open()
        prepared = self._prepared(self._windows.of(items, pace))
        with closing(prefetch(prepared, waits=pace.engine_waits)) as windows:
            for window in windows:
                outcomes = self._in_order(window)
                for item in window.items:
                    yield item.key, item.prompt if isinstance(item.prompt, InputError) else next(outcomes)
                self._check_process()  # a fork would wait for a window of a thread that it does not have

    def score_ids(self, records: Iterable[TokenInput], *, progress: bool = False) -> list[TokenResult]:
        """Score responses given as token ids: a log-prob of both models and a reward for each token.

        An item is a TokenRecord or a mapping with `prompt_token_ids`, `response_token_ids` and, if they are
        known, `step_ends`. Raises the first InputError or NonFinite, with the item's position; `stream` gives
        an error as that item's outcome. `progress` is as in `score`.
        """
        results = []
        outcomes = self.stream((position, _token_record(item)) for position, item in enumerate(records))
        with closing(with_bar(outcomes, records) if progress else outcomes) as shown:
            for position, outcome in shown:
                if not isinstance(outcome, TokenResult):
                    raise type(outcome)(f"item {position}: {outcome.message}", hint=outcome.hint)
                results.append(outcome)
        return results

    # The parts of `stream`, for a caller that forms windows itself, such as scheduling/.

    def encoded(
        self, key: T, record: Input | TokenRecord | InputError, *, tokens: bool = False
    ) -> PlannedItem[T]:
        """Return a record's token ids with its key; with `tokens` its result has every log-prob."""
        return self._windows.encoded(key, record, tokens=tokens)

    def planned(self, items: Sequence[PlannedItem[T]]) -> Window[T]:
        """Plan one window and have the engine prepare it; another window may be running meanwhile."""
        window = self._windows.planned(items)
        self._engine.prepare([group.batch for group in window.groups])
        return window

    def outcomes(self, window: Window[T]) -> Generator[Sequence[tuple[int, Outcome | TokenOutcome]]]:
        """Run a window; yield, batch by batch, (index into its valid items, outcome).

        Batches of several windows alternate. Closing the iterator leaves out the batches that have not run.
        """
        self.check_open()
        with closing(self._engine.run([group.batch for group in window.groups])) as scored:
            for group in window.groups:
                logprobs = self._next(scored)
                done = []
                for member, targets in zip(group.members, group.batch.target_of, strict=True):
                    policy, reference = logprobs["policy"][targets], logprobs["reference"][targets]
                    done.append((member, self._outcome(window.valid[member], policy, reference)))
                yield done

    @property
    def kept_prefixes(self) -> KeptCounts | None:
        """How full the prefix cache is, and how many tokens it has saved; None without one."""
        given = self._engine.given
        return given.counts if isinstance(given, KeptPrefixes) else None

    @property
    def window_tokens(self) -> int:
        """Most tokens of a window, prefixes counted as often as they occur."""
        return self._windows.window_tokens

    @property
    def max_tokens(self) -> int:
        """Most tokens of one record: the context length of the models."""
        return self._windows.encoder.max_tokens

    def fingerprint(self) -> dict[str, str]:
        """Return what the rewards depend on, as text: pair, beta, convention."""
        return {
            "pair": self.pair.fingerprint,
            "beta": repr(self.beta),
            "convention": self.convention.value,
        }

    def close(self) -> None:
        """Close the engine, releasing the models; scoring after that is a ScorerClosed.

        A batch that another thread is running is finished first. Does nothing in a fork of the process.
        """
        self._closed = True
        if not self.is_forked:
            with self._turn:
                self._engine.close()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that opened the pair."""
        return os.getpid() != self._process

    def check_open(self) -> None:
        """Raise ScorerClosed after `close`, and in a fork of the process that opened the pair."""
        self._check_process()
        if self._closed:
            raise ScorerClosed("the scorer is closed", hint="open the pair again with Scorer.load")

    def __enter__(self) -> Scorer:
        self.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Scorer cannot be pickled or copied: it holds open models. Pass the path of the pair, and call "
            "Scorer.load in each process"
        )

    def _check_process(self) -> None:
        if self.is_forked:
            raise ScorerClosed(
                f"the scorer was opened in process {self._process}, of which this one is a fork: a fork has "
                "none of the threads that compute",
                hint="call Scorer.load in each process, after it was started; prefer the start method spawn",
            )

    def _next(self, scored: Iterator[PairLogprobs]) -> PairLogprobs:
        """Run the next batch of a window, while no other thread or stream runs one."""
        self._check_process()  # before the lock: in a fork it may be held by a thread that is not there
        with self._turn:
            self.check_open()
            return next(scored)

    def _prepared(self, windows: Iterable[Window[T]]) -> Iterator[Window[T]]:
        """Have the engine prepare each window in the thread that plans it."""
        for window in windows:
            self._engine.prepare([group.batch for group in window.groups])
            yield window

    def _in_order(self, window: Window[T]) -> Iterator[Outcome | TokenOutcome]:
        """Yield one outcome per valid item, in order, as soon as possible."""
        done: dict[int, Outcome | TokenOutcome] = {}
        position = 0
        for outcomes in self.outcomes(window):
            done.update(outcomes)
            while position in done:
                yield done.pop(position)
                position += 1

    def _outcome(
        self, item: PlannedItem[T], policy: Logprobs, reference: Logprobs
    ) -> Result | TokenResult | NonFinite:
        """Return the result of an item from its computed log-probs."""
        prompt, start = item.encoded, item.first_computed
        finite = np.isfinite(policy) & np.isfinite(reference)
        if not finite.all():
            return NonFinite(
                f"the log-probability of token {start + 1 + int(finite.argmin())} is not finite",
                hint="export the pair at bf16, int8 or fp32: fp16 activations overflow on some models",
            )
        ratios = policy.astype(np.float64) - reference
        ends, first = prompt.step_ends - start, prompt.first_summed - start
        try:
            values = rewards(ratios, ends, beta=self.beta, start=first)
        except NonFinite as error:
            return error
        if item.of_ids:
            return self._token_result(prompt, values, policy[first:], reference[first:])
        return self._result(item, values, policy, reference)

    def _result(self, item: PlannedItem[T], values: Rewards, policy: Logprobs, reference: Logprobs) -> Result:
        prompt = item.encoded
        return Result(
            cumulative_rewards=values.cumulative_rewards.tolist(),
            step_rewards=values.step_rewards.tolist(),
            outcome_reward=values.outcome_reward,
            num_tokens=len(prompt.token_ids),
            response_start=prompt.response_start,
            first_summed=prompt.first_summed,
            step_ends=prompt.step_ends.tolist(),
            special_text=prompt.special_text,
            steps=item.steps,
            token_ids=prompt.token_ids if item.tokens else None,
            token_texts=self._windows.encoder.texts(prompt.token_ids.tolist()) if item.tokens else None,
            policy_logprobs=policy if item.tokens else None,
            reference_logprobs=reference if item.tokens else None,
        )

    def _token_result(
        self, prompt: EncodedPrompt, values: Rewards, policy: Logprobs, reference: Logprobs
    ) -> TokenResult:
        return TokenResult(
            policy_logprobs=policy,
            reference_logprobs=reference,
            token_rewards=(self.beta * (policy.astype(np.float64) - reference)).astype(np.float32),
            step_ends=(prompt.step_ends - prompt.first_summed).tolist(),
            cumulative_rewards=values.cumulative_rewards.tolist(),
            step_rewards=values.step_rewards.tolist(),
            outcome_reward=values.outcome_reward,
        )


def _token_record(item: TokenInput) -> TokenRecord | InputError:
    try:
        return item if isinstance(item, TokenRecord) else TokenRecord.of(item)
    except InputError as error:
        return error.untraced()

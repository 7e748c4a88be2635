"""Score from many asyncio tasks with one engine: their requests meet in its windows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stepscore.batching.windows import Input
from stepscore.errors import InputError, StepscoreError
from stepscore.records import TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.calls import Call
from stepscore.scheduling.observer import Observer
from stepscore.scheduling.requests import Answer, Request
from stepscore.scheduling.scheduler import Scheduler
from stepscore.scorer import Scorer, TokenInput


class AsyncScorer:
    """A scorer for asyncio: awaiting it blocks no other task.

    async with AsyncScorer.load("pair") as scorer:
        results = await asyncio.gather(*(scorer.score(record) for record in records))

    Requests that wait at the same time are computed together, and prefixes that they share once. So a reward
    depends on its neighbours as it does on the batch of `Scorer.score`: by rounding. Cancelling a task drops
    its request. `max_waiting_tokens` refuses calls while that many tokens wait; None: none is refused.
    """

    def __init__(
        self, scorer: Scorer, *, max_waiting_tokens: int | None = None, observer: Observer | None = None
    ) -> None:
        self.scheduler = Scheduler(scorer, max_waiting_tokens=max_waiting_tokens, observer=observer)

    @classmethod
    def load(cls, pair: str | Path, *, max_waiting_tokens: int | None = None, **options: Any) -> Self:
        """Open the pair in a folder, with the options of `Scorer.load`."""
        return cls(Scorer.load(pair, **options), max_waiting_tokens=max_waiting_tokens)

    @property
    def scorer(self) -> Scorer:
        """The scorer that computes; it is closed with this one."""
        return self.scheduler.scorer

    async def score(self, record: Input, *, tokens: bool = False, timeout: float | None = None) -> Result:
        """Score one record, or a mapping with the fields of an input line; with `tokens`, all log-probs.

        Raises InputError, NonFinite, RunFailed; Overloaded, ScorerClosed; DeadlineExceeded after `timeout`
        seconds.
        """
        result = await self._one(Request.of(record, tokens=tokens), timeout)
        assert isinstance(result, Result)
        return result

    async def score_ids(self, item: TokenInput, *, timeout: float | None = None) -> TokenResult:
        """Score one response given as token ids, as `Scorer.score_ids`; raises as `score` does."""
        record = TokenRecord.of(item) if isinstance(item, Mapping) else item
        result = await self._one(Request(record), timeout)
        assert isinstance(result, TokenResult)
        return result

    async def outcomes(
        self,
        requests: Sequence[Request | InputError],
        *,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Score requests together; return one outcome for each, in their order, errors among them.

        An error of one request is its outcome alone; one that is given is returned in its place. What is not
        scored within `timeout` seconds is a DeadlineExceeded. Raises Overloaded, ScorerClosed; then nothing
        of the call was accepted.
        """
        return (await self.call(requests, timeout=timeout)).done.result()

    async def call(self, requests: Sequence[Request | InputError], *, timeout: float | None = None) -> Call:
        """Score requests as `outcomes` does; return the call, which also tells what it took."""
        call = self.scheduler.submit(requests, timeout=timeout)
        answers = asyncio.wrap_future(call.done)
        try:
            await asyncio.wait([answers], timeout=timeout)
            if not answers.done():
                self.scheduler.expire(call)
            await answers
        except asyncio.CancelledError:
            self.scheduler.abandon(call)
            raise
        return call

    async def aclose(self) -> None:
        """Close the scorer; what was accepted and is not scored by now is a ScorerClosed."""
        await asyncio.to_thread(self.scheduler.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _one(self, request: Request, timeout: float | None) -> Result | TokenResult:
        (outcome,) = await self.outcomes([request], timeout=timeout)
        if isinstance(outcome, StepscoreError):
            raise outcome
        return outcome

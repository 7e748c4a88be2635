"""The scheduler: accepts calls from any thread, forms windows for one engine, and answers every request.

    submit        reserves an upper estimate of the tokens, or refuses the call, before it is tokenized
    tokenizer     a thread: exact token counts replace the estimates, and the requests wait, by problem
    planner       a thread: forms a window when the engine is free, or when a whole one waits beside a
                  running one; so one window at most is prepared ahead
    engine        a thread: runs a window batch by batch, and answers each request with its batch

No timer delays a request. One that nobody waits for any more is left out of the next window; a running window
ends early once nobody waits for any of it. Whatever happens, a request that was accepted is answered once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b

from stepscore.batching.windows import Window
from stepscore.errors import DeadlineExceeded, InputError, Overloaded, RunFailed, ScorerClosed, StepscoreError
from stepscore.records import Record
from stepscore.scheduling.calls import Call, Ticket
from stepscore.scheduling.observer import Dropped, Observer
from stepscore.scheduling.pace import Pace
from stepscore.scheduling.requests import Answer, Request
from stepscore.scheduling.waiting import Waiting
from stepscore.scorer import Scorer

UNKNOWN_WAIT = 1.0
"""Seconds after which a refused call may come again, before any pace is known."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a scheduler at one moment.

    Waiting tokens are those accepted and not yet in a window: estimates until a request is tokenized.
    """

    waiting_requests: int
    waiting_tokens: int
    running_requests: int
    running_tokens: int
    tokens_per_second: float | None
    draining: bool


class Scheduler:
    """Threads that score the requests of many callers with one scorer, which `close` closes.

    With `max_waiting_tokens`, a call is refused while that many or more tokens wait.
    """

    def __init__(
        self, scorer: Scorer, *, max_waiting_tokens: int | None = None, observer: Observer | None = None
    ) -> None:
        self.scorer = scorer
        self.observer = observer or Observer()
        self._max_waiting_tokens = max_waiting_tokens
        self._template_tokens = _template_tokens(scorer)
        self._changed = threading.Condition()
        self._waiting: Waiting[Ticket] = Waiting()
        self._reserved = 0  # tokens of requests that are not yet tokenized, at most
        self._open: set[Ticket] = set()
        self._next: Window[Ticket] | None = None
        self._running: Window[Ticket] | None = None
        self._pace = Pace()
        self._draining = self._closed = False
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="stepscore-tokenizer")
        self._threads = [
            threading.Thread(target=self._plan, name="stepscore-planner", daemon=True),
            threading.Thread(target=self._run, name="stepscore-engine", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[Request | InputError], *, timeout: float | None = None) -> Call:
        """Accept requests; `call.done` holds one answer for each, in their order.

        What is not answered `timeout` seconds from now is a DeadlineExceeded, at the latest when its window
        would be formed. Raises Overloaded, ScorerClosed; then none of them is accepted.
        """
        self.scorer.check_open()
        now = time.monotonic()
        limit = self.scorer.max_tokens
        estimates = [
            each.most_tokens(self._template_tokens, limit) if isinstance(each, Request) else 0
            for each in requests
        ]
        deadline = None if timeout is None else now + timeout
        call = Call.of(requests, estimates, accepted=now, deadline=deadline)
        with self._changed:
            if self._draining:
                raise ScorerClosed("the scorer is closing: it accepts no request", hint="ask another one")
            self._refuse_overload(call)
            self._reserved += sum(estimates)
            self._open.update(call.tickets)
            self._tokenizer.submit(self._tokenize, call.tickets)
        self.observer.admitted(len(call.tickets), sum(estimates))
        if not call.tickets:
            call.finish()
        return call

    def abandon(self, call: Call) -> None:
        """Drop what nobody waits for any more."""
        self._drop(call.tickets, ScorerClosed("the caller is gone"), Dropped.ABANDONED)

    def expire(self, call: Call) -> None:
        """Answer what is not answered by now with a DeadlineExceeded."""
        self._drop(call.tickets, _deadline_exceeded(), Dropped.DEADLINE)

    def snapshot(self) -> Snapshot:
        """Return how much waits and runs now."""
        with self._changed:
            windows = [window for window in (self._running, self._next) if window is not None]
            under_way = [ticket for window in windows for ticket in _tickets(window) if not ticket.answered]
            return Snapshot(
                waiting_requests=len(self._open) - len(under_way),
                waiting_tokens=self._waiting_tokens,
                running_requests=len(under_way),
                running_tokens=sum(ticket.planned.num_tokens for ticket in under_way),
                tokens_per_second=self._pace.tokens_per_second,
                draining=self._draining,
            )

    def drain(self, seconds: float | None = None) -> bool:
        """Accept no more requests and wait until all accepted ones are answered, at most `seconds`.

        Returns whether they are.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._open, seconds)

    def close(self) -> None:
        """End the threads and close the scorer; what is not answered by now is a ScorerClosed.

        Does nothing in a fork of the process.
        """
        if self.scorer.is_forked:
            return
        with self._changed:
            self._draining = self._closed = True
            left = list(self._open)
            self._changed.notify_all()
        self._drop(left, ScorerClosed("the scorer was closed before the request was scored"), Dropped.CLOSED)
        self._tokenizer.shutdown()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self.scorer.close()

    @property
    def _waiting_tokens(self) -> int:
        return self._reserved + self._waiting.tokens

    def _refuse_overload(self, call: Call) -> None:
        """Refuse a call while too much waits. A call of any size is accepted otherwise, so none starves."""
        most = self._max_waiting_tokens
        if most is None or self._waiting_tokens < most:
            return
        self.observer.refused(len(call.tickets))
        seconds = self._pace.seconds(self._waiting_tokens)
        raise Overloaded(
            f"{self._waiting_tokens:,} tokens wait, of {most:,} that may",
            hint="send the request again later",
            retry_after=UNKNOWN_WAIT if seconds is None else seconds,
        )

    def _tokenize(self, tickets: Sequence[Ticket]) -> None:
        """Tokenize the requests of a call; they begin to wait together, or a window at a time."""
        ready: list[Ticket] = []
        tokens = 0
        try:
            for ticket in tickets:
                if ticket.answered:
                    continue
                request = ticket.request
                ticket.item = self.scorer.encoded(ticket, request.item, tokens=request.tokens)
                ready.append(ticket)
                tokens += ticket.item.num_tokens
                if tokens >= self.scorer.window_tokens:
                    self._enqueue(ready)
                    ready, tokens = [], 0
            self._enqueue(ready)
        except Exception as error:  # a fault of the tokenizer ends no thread
            self._answer((ticket, _fault(error)) for ticket in tickets)

    def _enqueue(self, tickets: Iterable[Ticket]) -> None:
        wrong: list[tuple[Ticket, Answer]] = []
        with self._changed:
            for ticket in tickets:
                if ticket.answered:
                    continue
                self._release(ticket)
                prompt = ticket.planned.prompt
                if isinstance(prompt, InputError):
                    wrong.append((ticket, prompt))
                    continue
                start = prompt.token_ids[: prompt.response_start]
                problem = blake2b(start.tobytes(), digest_size=16).digest()
                self._waiting.add(ticket, problem, tokens=len(prompt.token_ids))
            self._changed.notify_all()
        self._answer(wrong)

    def _plan(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_form)
                if self._closed:
                    return
                taken = self._waiting.take(self.scorer.window_tokens)
            now = time.monotonic()
            late = [each for each in taken if each.call.deadline is not None and each.call.deadline <= now]
            self._drop(late, _deadline_exceeded(), Dropped.DEADLINE)
            items = [ticket.planned for ticket in taken if not ticket.answered]
            try:
                window = self.scorer.planned(items) if items else None
            except Exception as error:
                self._answer((ticket, _fault(error)) for ticket in taken)
                window = None
            with self._changed:
                self._next = window
                self._changed.notify_all()

    def _may_form(self) -> bool:
        """Return whether a window is to be formed: the engine is free, or a whole window waits beside it."""
        if self._closed:
            return True
        whole = self._waiting.tokens >= self.scorer.window_tokens
        return self._next is None and len(self._waiting) > 0 and (self._running is None or whole)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._next is not None)
                if self._next is None or self._closed:
                    return
                window = self._running = self._next
                self._next = None
            try:
                self._run_window(window)
            except Exception as error:  # a failed run ends no thread: its requests are answered with it
                fault = _fault(error)
                self._answer((ticket, fault) for ticket in _tickets(window))

    def _run_window(self, window: Window[Ticket]) -> None:
        tickets = _tickets(window)
        begun = time.monotonic()
        for ticket in tickets:
            ticket.begun = begun
        self.observer.window(
            sum(ticket.planned.num_tokens for ticket in tickets),
            window.num_computed,
            [begun - ticket.accepted for ticket in tickets],
        )
        if all(ticket.answered for ticket in tickets):
            return
        with closing(self.scorer.outcomes(window)) as batches:
            for group, outcomes in zip(window.groups, batches, strict=False):  # both end where it is closed
                tokens = sum(tickets[index].planned.num_tokens for index in group.members)
                for index in group.members:
                    share = tickets[index].planned.num_tokens / tokens
                    tickets[index].computed = share * len(group.batch.input_ids)
                self._answer((tickets[index], outcome) for index, outcome in outcomes)
                ended = time.monotonic()
                self._pace.add(tokens, ended - begun)
                self.observer.batch(tokens, ended - begun)
                begun = ended
                if all(ticket.answered for ticket in tickets):
                    return

    def _drop(self, tickets: Iterable[Ticket], answer: StepscoreError, reason: Dropped) -> None:
        for _ in self._answer([(ticket, answer) for ticket in tickets]):
            self.observer.dropped(reason)

    def _answer(self, answers: Iterable[tuple[Ticket, Answer]]) -> list[Ticket]:
        """Answer requests that are not answered yet, wherever they are; return these."""
        answered, finished = [], []
        with self._changed:
            for ticket, answer in answers:
                if ticket.answered:
                    continue
                self._release(ticket)
                self._waiting.remove(ticket)
                self._open.discard(ticket)
                answered.append(ticket)
                if ticket.call.answer(ticket, answer):
                    finished.append(ticket.call)
            self._changed.notify_all()
        for call in finished:
            call.finish()
        return answered

    def _release(self, ticket: Ticket) -> None:
        self._reserved -= ticket.reserved
        ticket.reserved = 0


def _tickets(window: Window[Ticket]) -> list[Ticket]:
    return [item.key for item in window.valid]


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("not scored before its deadline", hint="allow more time, or send less at once")


def _fault(error: Exception) -> StepscoreError:
    if isinstance(error, StepscoreError):
        return error.untraced()
    return RunFailed(f"scoring failed: {type(error).__name__}: {error}")


def _template_tokens(scorer: Scorer) -> int:
    """Return the tokens of a record of almost no text: those of the chat template."""
    item = scorer.encoded(None, Record("1", ("1",)))
    return item.num_tokens

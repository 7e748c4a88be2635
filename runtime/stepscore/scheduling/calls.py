"""Calls: the requests that a caller sends together, and their answers, one each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepscore.errors import InputError
from stepscore.scheduling.requests import Answer, Request

if TYPE_CHECKING:
    from stepscore.batching.windows import PlannedItem


@dataclass(slots=True, eq=False)
class Ticket:
    """One accepted request on its way to its answer."""

    call: Call
    index: int
    request: Request
    reserved: int
    """Upper estimate of its tokens, until it is tokenized."""
    accepted: float
    """Time at which it was accepted, by the monotonic clock, seconds."""
    item: PlannedItem[Ticket] | None = None
    begun: float | None = None
    """Time at which its window began to run."""
    computed: float = 0.0
    """Its part of the tokens that its batch computed, by its share of those that the batch answered."""
    answered: bool = False

    @property
    def planned(self) -> PlannedItem[Ticket]:
        """Return the tokenized record."""
        assert self.item is not None
        return self.item


@dataclass(slots=True, eq=False)
class Call:
    """Requests sent together, whose answers `done` holds in their order once there is one for each.

    `deadline` is a time of the monotonic clock, seconds: no answer is computed after it.
    """

    deadline: float | None
    answers: list[Answer | None]
    done: Future[list[Answer]] = field(default_factory=Future)
    tickets: list[Ticket] = field(default_factory=list)
    left: int = 0
    """Number of tickets that are not answered."""

    @classmethod
    def of(
        cls,
        given: Sequence[Request | InputError],
        estimates: Sequence[int],
        *,
        accepted: float,
        deadline: float | None,
    ) -> Call:
        """Return the call of these requests; an error among them is its own answer."""
        call = cls(deadline, [each if isinstance(each, InputError) else None for each in given])
        call.done.set_running_or_notify_cancel()  # it is answered, never cancelled
        call.tickets = [
            Ticket(call, index, each, most, accepted)
            for index, (each, most) in enumerate(zip(given, estimates, strict=True))
            if isinstance(each, Request)
        ]
        call.left = len(call.tickets)
        return call

    @property
    def computed_tokens(self) -> int:
        """Return the tokens computed for its requests: a prefix that several share is divided among them."""
        return round(sum(ticket.computed for ticket in self.tickets))

    @property
    def queue_seconds(self) -> float:
        """Return the longest time that one of its requests waited for a window; 0 where none ran."""
        waited = [each.begun - each.accepted for each in self.tickets if each.begun is not None]
        return max(waited, default=0.0)

    def answer(self, ticket: Ticket, answer: Answer) -> bool:
        """Keep the answer of a ticket that has none; return whether it is the last of the call."""
        ticket.answered = True
        self.answers[ticket.index] = answer
        self.left -= 1
        return not self.left

    def finish(self) -> None:
        """Give the answers to the caller."""
        self.done.set_result([answer for answer in self.answers if answer is not None])

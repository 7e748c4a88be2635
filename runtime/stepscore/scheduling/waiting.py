"""The waiting requests, in groups of one problem, and which of them the next window takes. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Group(Generic[T]):
    members: dict[T, tuple[int, int]] = field(default_factory=dict)  # arrival and tokens of each, by arrival
    tokens: int = 0

    @property
    def oldest(self) -> int:
        return next(iter(self.members.values()))[0]


class Waiting(Generic[T]):
    """Requests in the order of their arrival, grouped by problem: samples of one share a prefix.

    >>> waiting = Waiting()
    >>> for name, group in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")):
    ...     waiting.add(name, group, tokens=4)
    >>> waiting.take(13)
    ['a1', 'a2', 'b1']
    >>> waiting.take(13)
    ['c1']
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._arrivals = 0
        self._groups: dict[Hashable, _Group[T]] = {}
        self._group_of: dict[T, Hashable] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __iter__(self) -> Iterator[T]:
        return iter(self._group_of)

    def add(self, item: T, group: Hashable, *, tokens: int) -> None:
        """Add a request of a group."""
        members = self._groups.setdefault(group, _Group())
        members.members[item] = self._arrivals, tokens
        members.tokens += tokens
        self._group_of[item] = group
        self._arrivals += 1
        self.tokens += tokens

    def remove(self, item: T) -> bool:
        """Remove a request; return whether it was waiting."""
        if item not in self._group_of:
            return False
        name = self._group_of.pop(item)
        group = self._groups[name]
        _, tokens = group.members.pop(item)
        group.tokens -= tokens
        self.tokens -= tokens
        if not group.members:
            del self._groups[name]
        return True

    def take(self, budget: int) -> list[T]:
        """Remove and return the requests of one window: at most `budget` tokens, or a single request.

        The group whose oldest member has waited longest comes first, whole or as much of it as fits; so none
        waits longer than the windows that are needed for what came before it. Then come groups that fit
        whole, oldest first, then single requests that fit.
        """
        taken: list[T] = []
        room = budget
        groups = sorted(self._groups.values(), key=lambda group: group.oldest)
        for position, group in enumerate(groups):
            if group.tokens <= room or not position:
                room = self._fill(taken, list(group.members), room)
        left = sorted(
            ((arrival, item) for group in groups for item, (arrival, _) in group.members.items()),
            key=lambda each: each[0],
        )
        self._fill(taken, [item for _, item in left], room)
        return taken

    def _fill(self, taken: list[T], items: list[T], room: int) -> int:
        """Take the items that fit, the very first one in any case; return the room that is left."""
        for item in items:
            _, tokens = self._groups[self._group_of[item]].members[item]
            if tokens <= room or not taken:
                self.remove(item)
                taken.append(item)
                room -= tokens
        return room

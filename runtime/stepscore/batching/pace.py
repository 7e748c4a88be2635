"""Pace: when a window is closed before it is full, because nothing else waits and the engine is idle."""

from __future__ import annotations

from typing import Protocol


class Pace(Protocol):
    """How items arrive that fill windows."""

    def pauses(self) -> bool:
        """Return whether to close the window being filled: no item waits, and the engine waits for a window.

        Blocks until that is so, or an item or the end of all is there.
        """

    def engine_waits(self, waits: bool) -> None:
        """Note that the engine has nothing to run, or that it has a window again."""


class Steady:
    """Items that are all there, as those of a file: every window is filled."""

    def pauses(self) -> bool:
        """Return False: the next item is there."""
        return False

    def engine_waits(self, waits: bool) -> None:
        """Ignore it."""


STEADY = Steady()

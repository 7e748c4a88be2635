"""What a scheduler tells of its work, for metrics: called in its threads, so methods must be quick."""

from __future__ import annotations

import enum


class Dropped(enum.StrEnum):
    """Reason why an accepted request was not computed."""

    ABANDONED = "abandoned"
    """Its caller is gone."""
    DEADLINE = "deadline"
    """Its deadline passed."""
    CLOSED = "closed"
    """The scheduler was closed before its turn."""


class Observer:
    """Does nothing; subclasses count."""

    def admitted(self, requests: int, most_tokens: int) -> None:
        """Count a call that was accepted, with the upper estimate of its tokens."""

    def refused(self, requests: int) -> None:
        """Count a call that was refused, as too much waits."""

    def dropped(self, reason: Dropped) -> None:
        """Count an accepted request that was not computed."""

    def window(self, tokens: int, computed_tokens: int, waited: list[float]) -> None:
        """Count a window that begins to run: tokens asked for and computed, seconds each request waited."""

    def batch(self, tokens: int, seconds: float) -> None:
        """Count a batch: the tokens of the requests that it answers, and its time."""

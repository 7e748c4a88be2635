"""The pace of an engine: tokens answered per second of its time."""

from __future__ import annotations

FORGETTING = 0.98
"""Weight that a batch keeps with each that follows: the last fifty count."""


class Pace:
    """Average of the last batches.

    >>> pace = Pace()
    >>> pace.tokens_per_second is None, pace.seconds(100)
    (True, None)
    >>> pace.add(500, 2.0)
    >>> pace.tokens_per_second, pace.seconds(1000)
    (250.0, 4.0)
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Add a batch: the tokens of the requests that it answered, and its time."""
        self._tokens = FORGETTING * self._tokens + tokens
        self._seconds = FORGETTING * self._seconds + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second, prefixes counted as often as they occur; None before the first batch."""
        return self._tokens / self._seconds if self._tokens and self._seconds else None

    def seconds(self, tokens: int) -> float | None:
        """Return the time that so many tokens take, None before the first batch."""
        rate = self.tokens_per_second
        return None if rate is None else tokens / rate

"""Settings of the server that `stepscore serve` has options for, and its fixed limits."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

MAX_BUFFERED_BODIES = 32
"""Bodies of the largest size that may be in memory at once while they are read."""
READ_SECONDS = 60.0
"""Longest time that a client may take to send one body."""
KEEP_ALIVE_SECONDS = 75
"""Time after which a connection is closed that sends no request, or reads nothing of its answer.

Longer than the pools of common clients keep a connection.
"""
MAX_HEADER_BYTES = 16 << 10
WRITE_OUT_SECONDS = 10
"""Time for the last answers to leave after a drain."""


class OverloadStatus(enum.IntEnum):
    """Status of a refused call: 503, which clients retry, or 429."""

    SERVICE_UNAVAILABLE = 503
    TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one call, and how the server refuses and ends."""

    max_body_bytes: int = 8 << 20
    max_items: int = 1024
    timeout: float | None = None
    """Default deadline of a call, in seconds from its arrival."""
    overload_status: OverloadStatus = OverloadStatus.SERVICE_UNAVAILABLE
    drain_seconds: float = 30.0
    keys: frozenset[bytes] = field(default_factory=frozenset)
    """SHA-256 digests of the accepted API keys; none: no route is guarded."""

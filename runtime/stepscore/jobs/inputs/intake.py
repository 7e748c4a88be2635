"""Intake: a thread reads an input that arrives line by line, and says when no line waits.

So a program can hold a conversation over a pipe: a line that comes alone is answered at once, and lines that
come faster than they are scored still fill whole windows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

HELD_LINES, HELD_BYTES = 1024, 8 << 20
"""Lines, and bytes of them, that wait before the thread stops reading: enough for a window."""

Line = tuple[int, bytes]


class Intake(Iterator[Line]):
    """Numbered lines, read by a daemon thread; the Pace of what they are scored with."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._waiting: deque[Line] = deque()
        self._held = 0
        self._ended = self._closed = self._idle = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="stepscore-reader", daemon=True).start()

    def __next__(self) -> Line:
        with self._changed:
            self._changed.wait_for(self._is_there)
            if self._waiting:
                line = self._waiting.popleft()
                self._held -= len(line[1])
                self._changed.notify_all()
                return line
            error, self._error = self._error, None
            if error is not None:
                raise error
            raise StopIteration

    def pauses(self) -> bool:
        """Return whether no line is there while the engine waits; block until one of both is so."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_there() or self._idle)
            return not self._is_there()

    def engine_waits(self, waits: bool) -> None:
        """Note whether the engine has nothing to run."""
        with self._changed:
            self._idle = waits
            self._changed.notify_all()

    def stays_empty(self, seconds: float) -> bool:
        """Return whether neither a line nor the end comes within so many seconds."""
        with self._changed:
            return not self._changed.wait_for(self._is_there, seconds)

    def close(self) -> None:
        """Stop reading ahead; a thread that waits for a line of the source ends with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_there(self) -> bool:
        return bool(self._waiting) or self._ended

    def _has_room(self) -> bool:
        return (len(self._waiting) < HELD_LINES and self._held < HELD_BYTES) or self._closed

    def _read(self) -> None:
        try:
            for line in self._lines:
                with self._changed:
                    self._changed.wait_for(self._has_room)
                    if self._closed:
                        return
                    self._waiting.append(line)
                    self._held += len(line[1])
                    self._changed.notify_all()
        except BaseException as error:  # raised in the thread that scores
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

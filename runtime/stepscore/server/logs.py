"""Logs as JSON lines: time, level, event and fields; no text of a request and no message that quotes one."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TextIO

import msgspec


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; of an exception only its type."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return msgspec.json.encode(line).decode()


def log_to(stream: TextIO) -> None:
    """Send the logs of the server, and errors of uvicorn, to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name, level in (("stepscore", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False

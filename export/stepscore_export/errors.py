"""Turn the operating system's refusals into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepscore.errors import OutputUnwritable


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Raise OutputUnwritable where writing to `path` fails (no space, no permission)."""
    try:
        yield
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write {path}: {error.strerror or error}",
            hint="free space or choose another --output; `stepscore export --dry-run` prints what is needed",
        ) from None

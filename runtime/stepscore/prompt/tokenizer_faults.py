"""Name what the tokenizers library raises: errors without a class of their own, and panics of Rust."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stepscore.errors import StepscoreError

_MOST_CHARS = 200


@contextmanager
def tokenizer_faults_as(kind: type[StepscoreError], what: str, hint: str) -> Iterator[None]:
    """Raise `kind` where the tokenizer fails; a panic is a BaseException, which would end the process."""
    try:
        yield
    except BaseException as error:
        panicked = type(error).__module__ == "pyo3_runtime"
        if not panicked and type(error) is not Exception:
            raise
        raise kind(f"{what}: {str(error)[:_MOST_CHARS]}", hint=hint) from None

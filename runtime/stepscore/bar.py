"""A progress bar around an iterator, in a notebook or on a terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sized
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")


def with_bar(outcomes: Generator[T], records: Iterable[object]) -> Generator[T]:
    """Yield the outcomes of records and show how many have come, in a notebook or on standard error."""
    from tqdm.auto import tqdm  # noqa: PLC0415 (asks IPython what it runs in: only where a bar is wanted)

    total = len(records) if isinstance(records, Sized) else None
    with closing(outcomes), tqdm(total=total, unit="record") as bar:
        for outcome in outcomes:
            bar.update()
            yield outcome

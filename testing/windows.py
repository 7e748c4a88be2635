"""Draw windows of short sequences that share prefixes, and read the prefixes out of a packed batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepscore.batching import planner
from stepscore.batching.batch import Batch

Ids = NDArray[np.int64]
Prefix = tuple[int, ...]


@st.composite
def windows(draw: st.DrawFn, min_size: int = 1) -> tuple[list[Ids], list[int]]:
    """Sequences of 2 to 12 of three tokens, so that most share a beginning, and where each is scored from."""
    texts = draw(st.lists(st.text("789", min_size=2, max_size=12), min_size=min_size, max_size=12))
    for text in draw(st.lists(st.sampled_from(texts), max_size=4)) if texts else []:
        texts.append(text[: draw(st.integers(2, len(text)))])  # the same, or its beginning
    starts = [draw(st.integers(0, len(text) - 2)) for text in texts]
    return [np.array([int(token) for token in text]) for text in texts], starts


BUDGETS = st.integers(1, 60)
SHARE = st.booleans()


@contextmanager
def small_limits() -> Iterator[None]:
    """Short is up to 6 tokens here, so that both kinds are drawn and the scores of short ones are a limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "SHORT_TOKENS", 6)
        patch.setattr(planner, "MAX_SCORES", 120)
        yield


def prefixes(sequences: Sequence[Ids]) -> set[Prefix]:
    """Return every distinct prefix of the sequences."""
    return {tuple(each[:end].tolist()) for each in sequences for end in range(1, len(each) + 1)}


def lines_of(batch: Batch) -> list[Ids]:
    """The rows of each line of the padded view, without the padding."""
    return [path[: last + 1] for path, last in zip(batch.pad_index, batch.seqlens_k, strict=True)]


def prefix_of_each_row(batch: Batch) -> list[Prefix]:
    """Return the tokens up to each row of a batch; every line of the padded view must agree on them."""
    found: dict[int, Prefix] = {}
    for line in lines_of(batch):
        for end in range(1, len(line) + 1):
            prefix = tuple(batch.input_ids[line[:end]].tolist())
            assert found.setdefault(int(line[end - 1]), prefix) == prefix
    return [found[row] for row in range(len(batch.input_ids))]

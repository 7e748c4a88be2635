"""A text that is far too long is refused before all of it is encoded, and no other one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import (
    CHATML,
    FLAGGED,
    OTHER,
    PROVED,
    QWEN2,
    SMOLLM2,
    Rules,
    nasty_steps,
    nasty_text,
    trained,
)
from testing.hypothesis_profiles import examples
from tokenizers import AddedToken

from stepscore.enums import Convention
from stepscore.errors import TooLong
from stepscore.prompt import length
from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.length import PIECE_CHARS
from stepscore.prompt.pretokenizer import pre_tokenizer

RULES = pytest.mark.parametrize("rules", [pytest.param(rules, id=name) for name, rules in PROVED.items()])


def counting(text: str, rules: Rules = QWEN2) -> int:
    return len(trained(rules=rules).encode(text))


def least_tokens(
    texts: Sequence[str], limit: int, rules: Rules = QWEN2, count: Callable[[str], int] | None = None
) -> int:
    tokenizer = trained(rules=rules)
    cut, longest = pre_tokenizer(tokenizer.to_str()).cut, max(map(len, tokenizer.get_vocab()))
    assert cut is not None
    return length.least_tokens(texts, count or (lambda text: counting(text, rules)), limit, longest, cut)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut wherever a cut is possible."""
    monkeypatch.setattr(length, "PIECE_CHARS", 1)


@RULES
@examples(40)
@given(seed=st.integers(0, 2**32), more=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_counts_of_pieces_add_up_wherever_a_text_is_cut(rules: Rules, seed: int, more: str) -> None:
    text = nasty_text(Random(seed), at_most=40) + more
    assert least_tokens([text, text], 10**9, rules) == 2 * counting(text, rules)


@RULES
@examples(40)
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 60))
def test_the_number_is_above_the_limit_only_if_that_of_the_whole_is(
    rules: Rules, seed: int, limit: int
) -> None:
    text = nasty_text(Random(seed), at_most=40)
    found, whole = least_tokens([text], limit, rules), counting(text, rules)
    assert (found > limit) == (whole > limit)
    assert found <= whole


@pytest.mark.parametrize("added", [(), FLAGGED], ids=["plain", "flagged"])
@pytest.mark.parametrize("rules", [QWEN2, SMOLLM2, OTHER], ids=["qwen2", "smollm2", "other"])
@examples(60)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_a_record_is_refused_if_and_only_if_it_has_too_many_tokens(
    rules: Rules, added: tuple[AddedToken, ...], seed: int, limit: int
) -> None:
    tokenizer = trained(added=added, rules=rules)
    random = Random(seed)
    problem, steps = nasty_text(random, at_most=60), nasty_steps(random)
    needed = len(
        PromptEncoder(tokenizer.to_str(), CHATML, max_tokens=10**6)
        .encode(problem, steps, Convention.EXACT)
        .token_ids
    )
    limited = PromptEncoder(tokenizer.to_str(), CHATML, max_tokens=limit)
    if needed <= limit:
        limited.encode(problem, steps, Convention.EXACT)
    else:
        with pytest.raises(
            TooLong, match=f"tokens exceed the context length of {limit}; nothing is truncated"
        ):
            limited.encode(problem, steps, Convention.EXACT)


@pytest.mark.parametrize("rules", [QWEN2, SMOLLM2], ids=["qwen2", "smollm2"])
@pytest.mark.parametrize("text", ["word " * 500_000, "line\n" * 500_000, "x" * 3_000_000, " " * 3_000_000])
def test_of_a_text_of_megabytes_a_small_part_is_encoded(
    monkeypatch: pytest.MonkeyPatch, text: str, rules: Rules
) -> None:
    monkeypatch.setattr(length, "PIECE_CHARS", PIECE_CHARS)
    seen = 0

    def count(piece: str) -> int:
        nonlocal seen
        seen += len(piece)
        return counting(piece, rules)

    assert least_tokens([text], 4096, rules, count) > 4096
    assert seen < 10 * PIECE_CHARS

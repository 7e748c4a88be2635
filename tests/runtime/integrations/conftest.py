"""One scorer for all adapters, which differ in what they ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stepscore.records import Record, TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Request


@pytest.fixture(scope="package")
def shared(tiny_pair: Path) -> Iterator[AsyncScorer]:
    scorer = AsyncScorer.load(tiny_pair, convention="exact", beta=1.0)
    yield scorer
    scorer.scheduler.close()


class Direct:
    """What the scorer itself says, without an adapter."""

    def __init__(self, scorer: AsyncScorer) -> None:
        self._scorer = scorer
        self.pair = scorer.scorer.pair
        self.template = self.pair.manifest.template
        self._tokenizer = Tokenizer.from_str(self.pair.tokenizer_json())

    def prompt(self, problem: str) -> str:
        """A problem in the pair's template, up to the response."""
        return self.template.prefix + problem + self.template.between

    def text(self, problem: str, *steps: str, unfinished: bool = False) -> Result:
        result = self._outcome(Record(problem, steps, unfinished))
        assert isinstance(result, Result)
        return result

    def ids(self, prompt: list[int], response: list[int]) -> TokenResult:
        result = self._outcome(TokenRecord(tuple(prompt), tuple(response)))
        assert isinstance(result, TokenResult)
        return result

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text, its control tokens matched."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, control tokens spelled out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _outcome(self, item: Record | TokenRecord) -> object:
        (outcome,) = self._scorer.scheduler.submit([Request(item)]).done.result()
        return outcome


@pytest.fixture(scope="package")
def direct(shared: AsyncScorer) -> Direct:
    return Direct(shared)

"""The product in one file: problem and steps -> token ids -> packed batches -> log-probs -> step rewards.

with Scorer.load("pair") as scorer:
    for result in scorer.score([{"problem": "1 + 1?", "steps": ["1 + 1 = 2", "So 2."]}]):
        print(result.step_rewards)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stepscore.artifact import Pair
from stepscore.choices import Convention, Provider
from stepscore.engine import Engine, EngineOptions, Logprobs
from stepscore.errors import InputError, NonFinite
from stepscore.plan import budgeted, pack
from stepscore.prompt import EncodedPrompt, PromptEncoder
from stepscore.records import Record, record_from
from stepscore.rewards import rewards

T = TypeVar("T")

DEFAULT_BATCH_TOKENS = 4096


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one solution; `step_ends` are indices into the log-probs (j scores token j + 1).

    The three arrays are None unless the scorer was loaded with `tokens=True`: `token_ids` int64 [L],
    `policy_logprobs` and `reference_logprobs` float32 [L-1], nats.
    """

    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float
    num_tokens: int
    step_ends: list[int]
    special_text: bool = False
    token_ids: NDArray[np.int64] | None = None
    policy_logprobs: NDArray[np.float32] | None = None
    reference_logprobs: NDArray[np.float32] | None = None


Input = Record | Mapping[str, Any]
"""What can be scored; a mapping has the fields of a line of JSON."""

Outcome = Result | InputError | NonFinite


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    """One input on its way: what the caller wants back, and the prompt or why there is none."""

    key: T
    prompt: EncodedPrompt | InputError

    @property
    def num_tokens(self) -> int:
        return 0 if isinstance(self.prompt, InputError) else len(self.prompt.token_ids)


class Scorer:
    """An open pair and the choices that define a reward: convention and beta."""

    def __init__(
        self,
        pair: Pair,
        engine: Engine,
        *,
        convention: Convention,
        beta: float,
        max_batch_tokens: int,
        tokens: bool,
    ) -> None:
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta is {beta}; it must be a positive number")
        self.pair = pair
        self.convention = convention
        self.beta = beta
        self._engine = engine
        self._max_batch_tokens = max_batch_tokens
        self._tokens = tokens
        self._encoder = PromptEncoder(
            pair.tokenizer_json(),
            pair.manifest.template,
            max_tokens=pair.manifest.architecture.max_position_embeddings,
        )

    @classmethod
    def load(
        cls,
        pair: str | Path,
        *,
        provider: Provider | str = Provider.AUTO,
        convention: Convention | str = Convention.CARD,
        beta: float | None = None,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        threads: int | None = None,
        tokens: bool = False,
    ) -> Scorer:
        """Open the pair in folder `pair`; `beta` defaults to the pair's, `tokens` keeps the log-probs."""
        opened = Pair.open(pair)
        return cls(
            opened,
            Engine(opened, EngineOptions(provider=Provider(provider), threads=threads)),
            convention=Convention(convention),
            beta=opened.manifest.beta if beta is None else beta,
            max_batch_tokens=max_batch_tokens,
            tokens=tokens,
        )

    def score(self, records: Iterable[Input]) -> list[Result]:
        """Score all records; raise the first one's InputError or NonFinite, naming its position."""
        results = []
        for position, outcome in self.stream(enumerate(records)):
            if not isinstance(outcome, Result):
                raise type(outcome)(f"record {position}: {outcome.message}", hint=outcome.hint)
            results.append(outcome)
        return results

    def stream(self, items: Iterable[tuple[T, Input | InputError]]) -> Iterator[tuple[T, Outcome]]:
        """Score as the items come, one batch at a time; yield (key, outcome) in input order.

        An InputError among the items comes out at its place. Batches are filled with valid records only, so
        a bad one changes no other record's batch, and with it no bit of its numbers.
        """
        encoded = (self._encode(key, record) for key, record in items)
        for group in budgeted(encoded, lambda item: item.num_tokens, self._max_batch_tokens):
            prompts = [item.prompt for item in group if not isinstance(item.prompt, InputError)]
            scored = iter(self._score(prompts) if prompts else ())
            for item in group:
                yield item.key, item.prompt if isinstance(item.prompt, InputError) else next(scored)

    def fingerprint(self) -> dict[str, str]:
        """Return what the numbers depend on, as text."""
        return {
            "pair": self.pair.fingerprint,
            "beta": repr(self.beta),
            "convention": self.convention.value,
        }

    def close(self) -> None:
        """Release the models."""
        self._engine.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, key: T, given: Input | InputError) -> _Item[T]:
        if isinstance(given, InputError):
            return _Item(key, given)
        try:
            record = given if isinstance(given, Record) else record_from(given)
            return _Item(key, self._encoder.encode(record.problem, record.steps, self.convention))
        except InputError as error:
            return _Item(key, error)

    def _first_index(self, prompt: EncodedPrompt) -> int:
        """Return the first log-prob that the convention sums."""
        return 0 if self.convention is Convention.CARD else prompt.response_start - 1

    def _score(self, prompts: Sequence[EncodedPrompt]) -> Iterator[Result | NonFinite]:
        starts = [0 if self._tokens else self._first_index(prompt) for prompt in prompts]
        batch = pack([prompt.token_ids for prompt in prompts], starts)
        logprobs = self._engine.run(batch)
        for prompt, start, span in zip(prompts, starts, batch.spans, strict=True):
            yield self._result(prompt, start, span, logprobs)

    def _result(
        self, prompt: EncodedPrompt, start: int, span: slice, logprobs: Logprobs
    ) -> Result | NonFinite:
        policy, reference = logprobs["policy"][span], logprobs["reference"][span]
        finite = np.isfinite(policy) & np.isfinite(reference)
        if not finite.all():
            return NonFinite(
                f"the log-probability of token {start + 1 + int(finite.argmin())} is not finite",
                hint="export the pair at bf16, int8 or fp32: fp16 activations overflow on some models",
            )
        ratios = policy.astype(np.float64) - reference
        first = self._first_index(prompt) - start
        values = rewards(ratios, prompt.step_ends - start, beta=self.beta, start=first)
        return Result(
            cumulative_rewards=values.cumulative_rewards.tolist(),
            step_rewards=values.step_rewards.tolist(),
            outcome_reward=values.outcome_reward,
            num_tokens=len(prompt.token_ids),
            step_ends=prompt.step_ends.tolist(),
            special_text=prompt.special_text,
            token_ids=prompt.token_ids if self._tokens else None,
            policy_logprobs=policy if self._tokens else None,
            reference_logprobs=reference if self._tokens else None,
        )

"""Results of scoring: the rewards of a record of texts, or of token ids."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stepscore.errors import InputError, NonFinite
from stepscore.result_view import one_line_of, plain, rewards_table, same

_OF_TOKENS = ("policy_logprobs", "reference_logprobs")


class Result(msgspec.Struct, frozen=True, kw_only=True):  # noqa: PLW1641 (holds lists: no hash)
    """Rewards of one solution of L tokens and n steps, in units of beta times nats.

    Log-prob j is that of token j + 1; `first_summed` and `step_ends` [n] are indices into the log-probs, the
    first one summed and the last one of each step. `response_start` is the index of the first response token.
    `steps` are the texts of the steps. The last four are None unless the scorer was loaded with
    `tokens=True`: `token_ids` int64 [L], the text that each of them adds, `policy_logprobs` and
    `reference_logprobs` float32 [L-1], nats. Results are equal if all their fields are, arrays by their
    elements; a notebook shows a result as a table of its steps.
    """

    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float
    num_tokens: int
    response_start: int
    first_summed: int
    step_ends: list[int]
    special_text: bool = False
    steps: tuple[str, ...] = ()
    token_ids: NDArray[np.int64] | None = None
    token_texts: list[str] | None = None
    policy_logprobs: NDArray[np.float32] | None = None
    reference_logprobs: NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, lists for arrays: an object of JSON, a row of pandas."""
        return plain(self)

    def __eq__(self, other: object) -> bool:
        return same(self, other) if isinstance(other, Result) else NotImplemented

    def __repr__(self) -> str:
        return one_line_of(self, ("outcome_reward", "step_rewards", "num_tokens", *_OF_TOKENS))

    def _repr_html_(self) -> str:
        caption = f"outcome {self.outcome_reward:+.4g} over {self.num_tokens:,} tokens"
        return rewards_table(self.step_rewards, self.cumulative_rewards, self.steps, caption)


class TokenResult(msgspec.Struct, frozen=True, kw_only=True):  # noqa: PLW1641 (holds lists: no hash)
    """Log-probs and rewards of a response of R tokens, one for each of them, and of its n steps.

    With p and q the log-probs of policy and reference, float32 [R], nats: token_rewards = beta * (p - q),
    float32 [R], and cumulative_rewards[k] = beta * sum(p - q) up to the token step_ends[k], in float64.
    Results are equal if all their fields are, arrays by their elements.
    """

    policy_logprobs: NDArray[np.float32]
    reference_logprobs: NDArray[np.float32]
    token_rewards: NDArray[np.float32]
    step_ends: list[int]
    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, lists for arrays: an object of JSON, a row of pandas."""
        return plain(self)

    def __eq__(self, other: object) -> bool:
        return same(self, other) if isinstance(other, TokenResult) else NotImplemented

    def __repr__(self) -> str:
        return one_line_of(self, ("outcome_reward", "step_rewards", "token_rewards", *_OF_TOKENS))

    def _repr_html_(self) -> str:
        caption = (
            f"outcome {self.outcome_reward:+.4g} over {len(self.token_rewards):,} tokens of the response"
        )
        return rewards_table(self.step_rewards, self.cumulative_rewards, (), caption)


Outcome = Result | InputError | NonFinite
TokenOutcome = TokenResult | InputError | NonFinite

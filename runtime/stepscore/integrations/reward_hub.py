"""Reward models of reward_hub: conversations in, one score each out.

    prm = ProcessRewardModel.load("pair")
    prm.score(conversations, aggregation_method="min")

OutcomeRewardModel is the one of its_hub: both clients call it alike. Checked with reward-hub 0.1.10, whose
own models take conversations, and not the `question, responses` of its abstract class.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from stepscore.enums import Reducer, Series
from stepscore.errors import InvalidRecord
from stepscore.integrations.answers import Value, each_or, score_now
from stepscore.integrations.conversations import Conversations
from stepscore.integrations.its_hub import OutcomeRewardModel, are_several
from stepscore.integrations.probabilities import open_probability
from stepscore.prompt.template import SEPARATOR
from stepscore.results import Result, TokenResult
from stepscore.scheduling.async_scorer import AsyncScorer

__all__ = ["OutcomeRewardModel", "ProcessRewardModel"]

_REDUCERS = {"last": Reducer.LAST, "min": Reducer.MIN, "model": Reducer.LAST}


class ProcessRewardModel:
    """A pair as reward_hub's process reward model: scores in (0, 1), reduced to one per conversation.

    The score of a step is sigmoid(reward / temperature) of the cumulative reward up to it, in units of beta
    times nats; a reward must not be beyond 16.1 temperatures. `default` is the score of a conversation that
    cannot be scored; without one, its error is raised. Nothing is truncated.
    """

    def __init__(
        self,
        scorer: AsyncScorer,
        *,
        temperature: float = 1.0,
        default: float | None = None,
        drop_system: bool = False,
    ) -> None:
        self.scorer = scorer
        self.temperature = temperature
        self.default = default
        self._conversations = Conversations(scorer.scorer.pair, drop_system=drop_system)

    @classmethod
    def load(
        cls,
        pair: str | Path,
        *,
        temperature: float = 1.0,
        default: float | None = None,
        drop_system: bool = False,
        **options: Any,
    ) -> Self:
        """Open the pair in a folder, with the options of `Scorer.load`."""
        scorer = AsyncScorer.load(pair, **options)
        return cls(scorer, temperature=temperature, default=default, drop_system=drop_system)

    def score(
        self,
        messages: Sequence[Any],
        step_sep: str = SEPARATOR,
        aggregation_method: str | enum.Enum = "last",
        return_full_prm_result: bool = False,
        **limits: Any,
    ) -> list[Any]:
        """Return the score of each conversation, or its PRMResult; limits of tokens and workers are not used.

        `last` and `min` are over the steps; `model` takes the answer as one step, whose score is the last
        one. `prod` is rejected: at a small beta all scores are near 1/2, and a product would rank by the
        number of steps.
        """
        method = str(getattr(aggregation_method, "value", aggregation_method))
        if method not in _REDUCERS:
            raise InvalidRecord(
                f"aggregation_method is {method!r}; it must be last, min or model",
                hint="a product of scores near 1/2 ranks by the number of steps: use last or min",
            )
        if step_sep != SEPARATOR:
            raise InvalidRecord(f"step_sep is {step_sep!r}; steps are separated by a blank line")
        given = messages if are_several(messages) else [messages]
        rollouts = [self._conversations.attempt(f"messages[{k}]", each) for k, each in enumerate(given)]
        answers = score_now(self.scorer, rollouts)
        if not return_full_prm_result:
            value = Value(Series.CUMULATIVE, _REDUCERS[method])
            return each_or("messages", answers, self.default, lambda result: self._squashed(value.of(result)))
        kind = import_module("reward_hub.base").PRMResult
        steps = each_or("messages", answers, self._default_steps, self._steps)
        cut = slice(-1, None) if method == "model" else slice(None)
        return [kind(scores=each[cut], aggregation_method=method) for each in steps]

    @property
    def _default_steps(self) -> list[float] | None:
        return None if self.default is None else [self.default]

    def _steps(self, result: Result | TokenResult) -> list[float]:
        return [self._squashed(reward) for reward in result.cumulative_rewards]

    def _squashed(self, reward: float) -> float:
        return open_probability(reward, self.temperature)

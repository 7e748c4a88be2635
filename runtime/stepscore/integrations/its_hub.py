"""Reward models of its_hub, for its searches (beam search, particle filtering) and for best-of-n.

    prm = ProcessRewardModel.load("pair", convention="exact", stop_token="\\\\boxed")
    search = BeamSearch(StepGeneration(max_steps=16, step_token="\\n\\n", stop_token="\\\\boxed"), prm, 4)

its_hub calls methods and asks for no base class. Checked with its-hub 1.2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from stepscore.integrations.answers import OUTCOME, each_or, score, score_now
from stepscore.integrations.conversations import Conversations, as_list, as_text, record_of_text
from stepscore.integrations.probabilities import open_probability
from stepscore.integrations.rollouts import Rollout
from stepscore.records import Record
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Answer


class ProcessRewardModel:
    """A pair as its_hub's process reward model: one value in (0, 1) per response.

    The value is sigmoid(reward / temperature) of the response's outcome reward, the sum up to its last step,
    in units of beta times nats. its_hub's particle filter takes the inverse sigmoid of it as a log weight: at
    temperature 1 that is the reward itself. It must not be beyond 16.1 temperatures, where its_hub clips.

    its_hub hands over a partial response as it does a finished one. With `stop_token`, that of its
    StepGeneration, a response that contains it is finished, and its end of turn is scored too; any other is
    partial: its last step is scored at the blank line that ends it. Without it all are partial. Use the
    convention `exact`, by which the reward of a step does not change when the search goes on.

    A response that cannot be scored (empty, too long) gives `default`; without one, its error is raised.
    """

    def __init__(
        self,
        scorer: AsyncScorer,
        *,
        temperature: float = 1.0,
        stop_token: str | None = None,
        default: float | None = None,
        drop_system: bool = False,
    ) -> None:
        self.scorer = scorer
        self.temperature = temperature
        self.stop_token = stop_token
        self.default = default
        self._conversations = Conversations(scorer.scorer.pair, drop_system=drop_system)

    @classmethod
    def load(
        cls,
        pair: str | Path,
        *,
        temperature: float = 1.0,
        stop_token: str | None = None,
        default: float | None = None,
        drop_system: bool = False,
        **options: Any,
    ) -> Self:
        """Open the pair in a folder, with the options of `Scorer.load`."""
        return cls(
            AsyncScorer.load(pair, **options),
            temperature=temperature,
            stop_token=stop_token,
            default=default,
            drop_system=drop_system,
        )

    async def ascore(
        self, prompt_or_messages: object, response_or_responses: str | Sequence[str]
    ) -> float | list[float]:
        """Return the value of a response to a prompt, or of each of several, which are scored together."""
        rollouts = self._rollouts(prompt_or_messages, response_or_responses)
        return self._values(await score(self.scorer, rollouts), response_or_responses)

    def score(
        self, prompt_or_messages: object, response_or_responses: str | Sequence[str]
    ) -> float | list[float]:
        """Return what `ascore` does, outside an event loop."""
        rollouts = self._rollouts(prompt_or_messages, response_or_responses)
        return self._values(score_now(self.scorer, rollouts), response_or_responses)

    def _rollouts(self, prompt: object, responses: str | Sequence[str]) -> list[Rollout]:
        problem = self._conversations.problem("prompt", _plain(prompt))
        texts = [responses] if isinstance(responses, str) else as_list("responses", responses)
        return [self._rollout(problem, as_text(f"responses[{k}]", text)) for k, text in enumerate(texts)]

    def _rollout(self, problem: str, text: str) -> Rollout:
        record = record_of_text(problem, text)
        if isinstance(record, Record) and not (self.stop_token and self.stop_token in text):
            return replace(record, unfinished=True)
        return record

    def _values(self, answers: Sequence[Answer], responses: str | Sequence[str]) -> float | list[float]:
        values = each_or(
            "responses",
            answers,
            self.default,
            lambda result: open_probability(result.outcome_reward, self.temperature),
        )
        return values[0] if isinstance(responses, str) else values


class OutcomeRewardModel:
    """A pair as its_hub's outcome reward model, for best-of-n: the outcome reward of a whole answer.

    In units of beta times nats, signed; best-of-n only compares. `default` is as in ProcessRewardModel.
    """

    def __init__(
        self, scorer: AsyncScorer, *, default: float | None = None, drop_system: bool = False
    ) -> None:
        self.scorer = scorer
        self.default = default
        self._conversations = Conversations(scorer.scorer.pair, drop_system=drop_system)

    @classmethod
    def load(
        cls, pair: str | Path, *, default: float | None = None, drop_system: bool = False, **options: Any
    ) -> Self:
        """Open the pair in a folder, with the options of `Scorer.load`."""
        return cls(AsyncScorer.load(pair, **options), default=default, drop_system=drop_system)

    async def ascore(
        self, messages: Sequence[Any], orchestrator: object = None, **others: Any
    ) -> float | list[float]:
        """Return the reward of a conversation, or of each of several; what is for LLM judges is not used."""
        answers = await score(self.scorer, self._rollouts(messages))
        return self._values(answers, messages)

    def score(self, messages: Sequence[Any], **others: Any) -> float | list[float]:
        """Return what `ascore` does, outside an event loop."""
        return self._values(score_now(self.scorer, self._rollouts(messages)), messages)

    def _rollouts(self, messages: Sequence[Any]) -> list[Rollout]:
        several = messages if are_several(messages) else [messages]
        named = ((f"messages[{k}]", _plain(each)) for k, each in enumerate(several))
        return [self._conversations.attempt(name, each) for name, each in named]

    def _values(self, answers: Sequence[Answer], messages: Sequence[Any]) -> float | list[float]:
        values = each_or("messages", answers, self.default, OUTCOME.of)
        return values if are_several(messages) else values[0]


def are_several(messages: Sequence[Any]) -> bool:
    """Return whether these are conversations, and not the messages of one; none are several."""
    return not as_list("messages", messages) or isinstance(messages[0], list | tuple)


def _plain(conversation: Any) -> Any:
    """Return its_hub's ChatMessages and ChatMessage objects as a text or a list of mappings."""
    if hasattr(conversation, "to_chat_messages"):
        conversation = conversation.to_chat_messages()
    if isinstance(conversation, str):
        return conversation
    return [each.to_dict() if hasattr(each, "to_dict") else each for each in conversation]

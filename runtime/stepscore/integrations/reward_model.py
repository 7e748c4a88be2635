"""Reward model interface for search and evaluation code: texts in, lists of floats out.

    prm = RewardModel(Scorer.load("pair", convention="exact"))
    prm.score(questions, outputs)        search-and-learn's PRM: [question][output][step]
    prm.score(questions, outputs, default=None)      None for an output that cannot be scored
    prm(prompt, steps)                   one solution, split into steps
    prm.score_messages(conversation)     user and assistant turns, one conversation or several

Common prefixes within one call, such as those of beams, are computed once, and with
`Scorer.load(prefix_cache="2GB")` those of earlier calls are not computed again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TypeGuard, TypeVar, overload

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord
from stepscore.integrations.conversations import Conversations, Messages, as_list, as_text, record_of_text
from stepscore.records import Record
from stepscore.results import Result
from stepscore.rewards import read_series
from stepscore.scorer import Scorer

T = TypeVar("T")


class _Raise(enum.Enum):
    """Stands for no default: an error is raised. None is a default."""

    IT = enum.auto()


class RewardModel:
    """A loaded scorer, and the series of rewards to return.

    `cumulative` (the default) is the sum up to each step: its last value is the outcome reward, by which the
    authors of EurusPRM-Stage2 select and by which a search ranks beams of equal depth. `step` is the reward
    of each step, `mean` the cumulative reward over the number of tokens summed, `mean-difference` its first
    differences (see rewards.read_series). All are signed, in units of beta times nats, and not probabilities,
    which `stepscore.probability` gives: aggregate them by last, min or mean, never by a product.
    """

    def __init__(self, scorer: Scorer, series: Series | str = Series.CUMULATIVE) -> None:
        self.scorer = scorer
        self.series = Series(series)
        self._conversations = Conversations(scorer.pair)

    @overload
    def score(
        self, questions: Sequence[str], outputs: Sequence[Sequence[str]]
    ) -> list[list[list[float]]]: ...

    @overload
    def score(
        self, questions: Sequence[str], outputs: Sequence[Sequence[str]], *, default: T
    ) -> list[list[list[float] | T]]: ...

    def score(
        self, questions: Sequence[str], outputs: Sequence[Sequence[str]], *, default: T | _Raise = _Raise.IT
    ) -> list[list[list[float] | T]]:
        """Return the rewards of every step of every output of every question.

        Outputs are split at blank lines (see `split_steps`). An output that ends in a blank line is a partial
        solution: its last step is terminated by the blank line and scored there; no end-of-turn token is
        added. Any other output is a finished solution, and its end of turn is scored too.

        An output that cannot be scored (empty, too long, not Unicode, not finite) gives `default`, such as
        None or [-1.0]. Without a default the first one raises its InputError or NonFinite, with its position:
        `outputs[1][0]: ...`. Arguments of another shape or type always raise InvalidRecord.
        """
        as_list("questions", questions)
        as_list("outputs", outputs)
        if len(questions) != len(outputs):
            raise InvalidRecord(f"{len(questions)} questions, but outputs for {len(outputs)}")
        items: dict[str, Record | InputError] = {}
        for index, (question, texts) in enumerate(zip(questions, outputs, strict=True)):
            problem = as_text(f"questions[{index}]", question)
            for place, text in enumerate(as_list(f"outputs[{index}]", texts)):
                name = f"outputs[{index}][{place}]"
                items[name] = record_of_text(problem, as_text(name, text))
        rewards = iter(self._rewards(items, default))
        return [list(islice(rewards, len(texts))) for texts in outputs]

    @overload
    def __call__(self, prompt: str, steps: Sequence[str], *, finished: bool = True) -> list[float]: ...

    @overload
    def __call__(
        self, prompt: str, steps: Sequence[str], *, finished: bool = True, default: T
    ) -> list[float] | T: ...

    def __call__(
        self, prompt: str, steps: Sequence[str], *, finished: bool = True, default: T | _Raise = _Raise.IT
    ) -> list[float] | T:
        """Return the reward of every step of one solution; steps are not split further.

        The last step of an unfinished solution is scored at the blank line that terminates it. `default` is
        as in `score`.
        """
        texts = tuple(as_text(f"steps[{index}]", step) for index, step in enumerate(as_list("steps", steps)))
        record = Record(as_text("prompt", prompt), texts, unfinished=not finished)
        (rewards,) = self._rewards({"": record}, default)
        return rewards

    @overload
    def score_messages(self, messages: Messages) -> list[float]: ...

    @overload
    def score_messages(self, messages: Sequence[Messages]) -> list[list[float]]: ...

    @overload
    def score_messages(self, messages: Messages, *, default: T) -> list[float] | T: ...

    @overload
    def score_messages(self, messages: Sequence[Messages], *, default: T) -> list[list[float] | T]: ...

    def score_messages(
        self, messages: Messages | Sequence[Messages], *, default: T | _Raise = _Raise.IT
    ) -> list[float] | T | list[list[float] | T]:
        """Return the rewards of the assistant message of one conversation, or of each of several.

        A conversation is [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]; a system
        message before them is accepted if it equals the one in the pair's chat template. The text is split as
        in `score`, and `default` is as there. A message with more than role and content, such as
        `reasoning_content` or `tool_calls`, is an InvalidRecord: chat templates would render it too.
        """
        if not as_list("messages", messages):
            return []
        if _is_one(messages):
            (rewards,) = self._rewards(
                {"messages[-1]": self._conversations.record("messages", messages)}, default
            )
            return rewards
        named = ((f"messages[{index}]", each) for index, each in enumerate(messages))
        items = {f"{name}[-1]": self._conversations.record(name, each) for name, each in named}
        return self._rewards(items, default)

    def _rewards(
        self, items: Mapping[str, Record | InputError], default: T | _Raise
    ) -> list[list[float] | T]:
        """Score named records; an error begins with the name of its record, or gives the default."""
        rewards: list[list[float] | T] = []
        for name, outcome in self.scorer.stream(items.items()):
            if isinstance(outcome, Result):
                counts = [end - outcome.first_summed + 1 for end in outcome.step_ends]
                given = outcome.cumulative_rewards, outcome.step_rewards, counts
                rewards.append(read_series(self.series, *given).tolist())
            elif isinstance(default, _Raise):
                place = f"{name}: " if name else ""
                raise type(outcome)(f"{place}{outcome.message}", hint=outcome.hint)
            else:
                rewards.append(default)
        return rewards


def _is_one(messages: Messages | Sequence[Messages]) -> TypeGuard[Messages]:
    return isinstance(messages[0], Mapping)

"""Reward model interface for search and evaluation code: texts in, lists of floats out.

    prm = RewardModel(Scorer.load("pair", convention="exact"))
    prm.score(questions, outputs)        search-and-learn's PRM: [question][output][step]
    prm(prompt, steps)                   one solution, split into steps
    prm.score_messages(conversation)     user and assistant turns, one conversation or several

Common prefixes within one call, such as those of beams, are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, TypeGuard, overload

from stepscore.enums import Series
from stepscore.errors import InputError, InvalidRecord, NonFinite, NoSteps
from stepscore.prompt.template import split_steps
from stepscore.records import Record
from stepscore.scorer import Scorer

Messages = Sequence[Mapping[str, Any]]


class RewardModel:
    """A loaded scorer, and the series of rewards to return.

    `cumulative` (the default) is the sum up to each step: its last value is the outcome reward, by which the
    authors of EurusPRM-Stage2 select and by which a search ranks beams of equal depth. `step` is the reward
    of each step. Both are signed, in units of beta times nats, and not probabilities: aggregate them by last,
    min or mean, never by a product.
    """

    def __init__(self, scorer: Scorer, series: Series | str = Series.CUMULATIVE) -> None:
        self.scorer = scorer
        self.series = Series(series)

    def score(self, questions: Sequence[str], outputs: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """Return the rewards of every step of every output of every question.

        Outputs are split at blank lines (see `split_steps`). An output that ends in a blank line is a partial
        solution: its last step is terminated by the blank line and scored there; no end-of-turn token is
        added. Any other output is a finished solution, and its end of turn is scored too. The first output
        that cannot be scored raises its InputError or NonFinite, with its position: `outputs[1][0]: ...`.
        """
        _list("questions", questions)
        _list("outputs", outputs)
        if len(questions) != len(outputs):
            raise InvalidRecord(f"{len(questions)} questions, but outputs for {len(outputs)}")
        items: dict[str, Record] = {}
        for index, (question, texts) in enumerate(zip(questions, outputs, strict=True)):
            problem = _text(f"questions[{index}]", question)
            for place, text in enumerate(_list(f"outputs[{index}]", texts)):
                name = f"outputs[{index}][{place}]"
                items[name] = _record(name, problem, text)
        rewards = iter(self._rewards(items))
        return [list(islice(rewards, len(texts))) for texts in outputs]

    def __call__(self, prompt: str, steps: Sequence[str], *, finished: bool = True) -> list[float]:
        """Return the reward of every step of one solution; steps are not split further.

        The last step of an unfinished solution is scored at the blank line that terminates it. Raises
        InputError or NonFinite.
        """
        texts = tuple(_text(f"steps[{index}]", step) for index, step in enumerate(_list("steps", steps)))
        (rewards,) = self._rewards({"": Record(_text("prompt", prompt), texts, unfinished=not finished)})
        return rewards

    @overload
    def score_messages(self, messages: Messages) -> list[float]: ...

    @overload
    def score_messages(self, messages: Sequence[Messages]) -> list[list[float]]: ...

    def score_messages(self, messages: Messages | Sequence[Messages]) -> list[float] | list[list[float]]:
        """Return the rewards of the assistant message of one conversation, or of each of several.

        A conversation is [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]; a system
        message before them is accepted if it equals the one in the pair's chat template. The text is split as
        in `score`. Raises InputError, naming the message, or NonFinite.
        """
        if not _list("messages", messages):
            return []
        if _is_one(messages):
            (rewards,) = self._rewards({"messages": self._conversation("messages", messages)})
            return rewards
        named = ((f"messages[{index}]", each) for index, each in enumerate(messages))
        return self._rewards({name: self._conversation(name, each) for name, each in named})

    def _rewards(self, items: Mapping[str, Record]) -> list[list[float]]:
        """Score named records; an error begins with the name of its record."""
        rewards = []
        for name, outcome in self.scorer.stream(items.items()):
            if isinstance(outcome, InputError | NonFinite):
                place = f"{name}: " if name else ""
                raise type(outcome)(f"{place}{outcome.message}", hint=outcome.hint)
            of_steps = self.series is Series.STEP
            rewards.append(outcome.step_rewards if of_steps else outcome.cumulative_rewards)
        return rewards

    def _conversation(self, name: str, messages: object) -> Record:
        given = enumerate(_list(name, messages))
        turns = [_turn(f"{name}[{index}]", message) for index, message in given]
        if turns and turns[0][0] == "system":
            if turns[0][1].strip() not in self.scorer.pair.manifest.template.prefix:
                raise InvalidRecord(
                    f"{name}[0] differs from the system message in the pair's chat template",
                    hint="omit it: the template adds its own",
                )
            turns = turns[1:]
        roles = [role for role, _ in turns]
        if roles != ["user", "assistant"]:
            raise InvalidRecord(
                f"{name} must be one user and one assistant message, not {', '.join(roles)[:100] or 'none'}"
            )
        return _record(f"{name}[-1]", turns[0][1], turns[1][1])


def _record(name: str, problem: str, text: object) -> Record:
    steps, unfinished = split_steps(_text(name, text))
    if not steps:
        raise NoSteps(f"{name} is empty: nothing to score")
    return Record(problem, steps, unfinished)


def _turn(name: str, message: object) -> tuple[str, str]:
    """Return the role and the content of a message."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRecord(f"{name} must be a message: an object with a role and content")
    return _text(f"{name}.role", message["role"]), _text(f"{name}.content", message["content"])


def _is_one(messages: Messages | Sequence[Messages]) -> TypeGuard[Messages]:
    return isinstance(messages[0], Mapping)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRecord(f"{name} must be a string, not {type(value).__name__}")
    return value


def _list(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRecord(f"{name} must be a list, not {type(value).__name__}")
    return value

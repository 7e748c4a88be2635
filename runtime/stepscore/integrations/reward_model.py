"""A scorer in the shapes that searches and evaluations call: text in, plain lists of floats out.

    prm = RewardModel(Scorer.load("pair", convention="exact"))
    prm.score(questions, outputs)        search-and-learn's PRM: [question][output][step]
    prm(prompt, steps)                   one solution whose steps are known
    prm.score_messages(conversation)     user and assistant turns, one conversation or several

What a call begins with alike, as the beams of a search do, is computed once in it.
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
    """A loaded scorer, and which of its series is returned.

    `cumulative` (the default) gives the sum so far at every step: the last one is the outcome, the score that
    the authors of EurusPRM-Stage2 choose by, and what a search compares beams of equal depth by. `step` gives
    what each step added. Both are signed, in units of beta times nats: no probabilities, so aggregate them by
    last, min or mean, never by a product.
    """

    def __init__(self, scorer: Scorer, series: Series | str = Series.CUMULATIVE) -> None:
        self.scorer = scorer
        self.series = Series(series)

    def score(self, questions: Sequence[str], outputs: Sequence[Sequence[str]]) -> list[list[list[float]]]:
        """Return a reward for every step of every output of every question.

        Outputs are split at blank lines (see `split_steps`). One that ends in a blank line is a partial
        solution: its last step is closed, and read at that blank line. Any other is a finished answer, and
        its end is scored too. The first that cannot be scored raises its InputError, or NonFinite, and names
        its place: `outputs[1][0]: ...`.
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
        """Return a reward for every step of one solution; steps are taken as they are, never split again.

        Of an unfinished one the last step is read at the blank line that closes it. Raises InputError or
        NonFinite.
        """
        texts = tuple(_text(f"steps[{index}]", step) for index, step in enumerate(_list("steps", steps)))
        (rewards,) = self._rewards({"": Record(_text("prompt", prompt), texts, unfinished=not finished)})
        return rewards

    @overload
    def score_messages(self, messages: Messages) -> list[float]: ...

    @overload
    def score_messages(self, messages: Sequence[Messages]) -> list[list[float]]: ...

    def score_messages(self, messages: Messages | Sequence[Messages]) -> list[float] | list[list[float]]:
        """Return the rewards of the assistant's text in one conversation, or in each of several.

        A conversation is [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]; a system
        message before them is accepted where it is the one that the pair's template has. The text is split
        as by `score`. Raises InputError, naming the message, or NonFinite.
        """
        if not _list("messages", messages):
            return []
        if _is_one(messages):
            (rewards,) = self._rewards({"messages": self._conversation("messages", messages)})
            return rewards
        named = ((f"messages[{index}]", each) for index, each in enumerate(messages))
        return self._rewards({name: self._conversation(name, each) for name, each in named})

    def _rewards(self, items: Mapping[str, Record]) -> list[list[float]]:
        """Score what has a name; errors begin with it."""
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
                    f"{name}[0] is another system message than the pair's template has",
                    hint="leave it out: the pair's own is added",
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
        raise NoSteps(f"{name} is empty: there is nothing to score")
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

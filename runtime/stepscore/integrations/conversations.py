"""Arguments of other programs: texts, lists, and conversations of one user and one assistant turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

from stepscore.artifact.pair import Pair
from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.prompt.template import split_steps
from stepscore.records import Record

Messages = Sequence[Mapping[str, Any]]
SHOWN_CHARS = 60


class Conversations:
    """Reads conversations for a pair, whose chat template adds its own system message.

    Another system message is rejected, as it would not be scored; with `drop_system` it is left out.
    """

    def __init__(self, pair: Pair, *, drop_system: bool = False) -> None:
        self._pair = pair
        self._drop_system = drop_system

    def record(self, name: str, messages: object) -> Record | NoSteps:
        """Return the record of a user and an assistant message; raise InvalidRecord.

        The text is split at blank lines; one that ends in a blank line is a partial solution.
        """
        problem, solution = self._turns(name, messages, ["user", "assistant"])
        return record_of_text(problem, solution)

    def attempt(self, name: str, messages: object) -> Record | InputError:
        """Return what `record` does, an InvalidRecord too."""
        try:
            return self.record(name, messages)
        except InputError as error:
            return error.untraced()

    def problem(self, name: str, prompt: object) -> str:
        """Return the problem of a prompt: a text, or a list of one user message; raise InvalidRecord."""
        if isinstance(prompt, str):
            return prompt
        (problem,) = self._turns(name, prompt, ["user"])
        return problem

    def solution(self, name: str, completion: object) -> str:
        """Return the text of a completion, a text or one assistant message; raise InvalidRecord."""
        if isinstance(completion, str):
            return completion
        (solution,) = self._turns(name, completion, ["assistant"])
        return solution

    def _turns(self, name: str, messages: object, expected: list[str]) -> list[str]:
        given = enumerate(as_list(name, messages))
        turns = [_turn(f"{name}[{index}]", message) for index, message in given]
        if turns and turns[0][0] == "system":
            self._check_system(f"{name}[0]", turns[0][1])
            turns = turns[1:]
        roles = [role for role, _ in turns]
        if roles != expected:
            wanted = " and one ".join(expected)
            raise InvalidRecord(
                f"{name} must be one {wanted} message, not {', '.join(roles)[:100] or 'none'}"
            )
        return [text for _, text in turns]

    def _check_system(self, name: str, text: str) -> None:
        own = self._system_message
        if text != own and not self._drop_system:
            of_template = "has none" if own is None else f"has {beginning(own)}"
            raise InvalidRecord(
                f"{name} differs from the system message in the pair's chat template: it is "
                f"{beginning(text)}, the template {of_template}",
                hint="omit it: the template adds its own",
            )

    @cached_property
    def _system_message(self) -> str | None:
        return self._pair.encoder().system_message()


def record_of_text(problem: str, text: str) -> Record | NoSteps:
    """Return the record of a text, split at blank lines; unfinished where it ends in one."""
    steps, unfinished = split_steps(text)
    if not steps:
        return NoSteps(f"the text is {'white space' if text else 'empty'}: nothing to score")
    return Record(problem, steps, unfinished)


def as_text(name: str, value: object) -> str:
    """Return a string; raise InvalidRecord for anything else."""
    if not isinstance(value, str):
        raise InvalidRecord(f"{name} must be a string, not {type(value).__name__}")
    return value


def as_list(name: str, value: object) -> Sequence[Any]:
    """Return a list or another sequence that is no text; raise InvalidRecord for anything else."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRecord(f"{name} must be a list, not {type(value).__name__}")
    return value


def beginning(text: str) -> str:
    """Return a text in quotation marks, cut to be shown in a message."""
    return repr(text) if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]!r}..."


def _turn(name: str, message: object) -> tuple[str, str]:
    """Return the role and the content of a message; other keys must be null or empty."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRecord(f"{name} must be a message: an object with a role and content")
    for key, value in message.items():
        empty = value is None or (isinstance(value, Sized) and not len(value))
        if key not in {"role", "content"} and not empty:
            raise InvalidRecord(
                f"{name} has {beginning(str(key))}: only role and content are scored",
                hint="put what is to be scored into content, and drop the rest",
            )
    return as_text(f"{name}.role", message["role"]), as_text(f"{name}.content", message["content"])

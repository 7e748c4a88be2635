"""One line of a job, in and out: JSON text -> record, result -> JSON text.

    {"id": 7, "problem": "1+1?", "steps": ["2", "Done."], "label": -1}        in
    {"problem": "1+1?", "steps": [...], "label": -1, "id": 7, "cumulative_rewards": [...], ...}  out
    {"id": 7, "error": {"code": "no_steps", "message": "..."}}                 out, when it cannot be scored

`query` and `prompt` are accepted for `problem`; `answer` and `completions` for `steps`. A string `answer`
beside another field of steps is the final answer. Every field passes through byte for byte, so that what
reads the output needs no join with the input; a field with the name of an output field gives way to ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stepscore.errors import InputError, InvalidRecord, NonFinite

PROBLEM_NAMES = ("problem", "query", "prompt")
STEPS_NAMES = ("steps", "answer", "completions")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A problem and its solution, step by step.

    An `unfinished` one is a search's: a blank line closes its last step, and what follows is not known yet.
    """

    problem: str
    steps: tuple[str, ...]
    unfinished: bool = False


def record_from(fields: Mapping[str, Any]) -> Record:
    """Return the record a mapping holds under any of the accepted names; raise InvalidRecord.

    >>> record_from({"query": "1+1?", "answer": ["2"]})
    Record(problem='1+1?', steps=('2',), unfinished=False)
    """
    problem_names = [name for name in PROBLEM_NAMES if name in fields]
    steps_names = [name for name in STEPS_NAMES if name in fields]
    if len(steps_names) > 1 and "answer" in steps_names and not isinstance(fields["answer"], list | tuple):
        steps_names.remove("answer")
    problem = _agreed("problem", {name: _problem(name, fields[name]) for name in problem_names})
    steps = _agreed("steps", {name: _steps(name, fields[name]) for name in steps_names})
    return Record(problem, steps)


def _agreed(meaning: str, values: Mapping[str, T]) -> T:
    if not values:
        raise InvalidRecord(f"`{meaning}` is missing")
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise InvalidRecord(f"`{first}` and `{name}` are both given, and differ")
    return value


def _problem(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise InvalidRecord(
            f"`{name}` must be a string, not a list (of chat messages?): give the problem's text alone, "
            "the pair's own chat template adds the turns"
        )
    raise InvalidRecord(f"`{name}` must be a string, not {_json_type(value)}")


def _steps(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidRecord(f"`{name}` must be a list of strings, not {_json_type(value)}")
    for position, step in enumerate(value):
        if not isinstance(step, str):
            raise InvalidRecord(f"`{name}[{position}]` must be a string, not {_json_type(step)}")
    return tuple(value)


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one solution; `step_ends` are indices into the log-probs (j scores token j + 1).

    The last four are None unless the scorer was loaded with `tokens=True`: `token_ids` int64 [L], the text
    that each of them adds, `policy_logprobs` and `reference_logprobs` float32 [L-1], nats.
    """

    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float
    num_tokens: int
    step_ends: list[int]
    special_text: bool = False
    token_ids: NDArray[np.int64] | None = None
    token_texts: list[str] | None = None
    policy_logprobs: NDArray[np.float32] | None = None
    reference_logprobs: NDArray[np.float32] | None = None


Outcome = Result | InputError | NonFinite

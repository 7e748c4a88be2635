"""Records to score, by any of the accepted field names, and the results of scoring.

`query` and `prompt` are accepted for `problem`; `answer` and `completions` for `steps`. An `answer` that is
not a list, next to another field of steps, is the final answer. `completions` are steps in TRL's data sets;
whole answers, as in files of best-of-N samples, are rejected. jobs/schema.py defines the lines of a job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stepscore.errors import InputError, InvalidRecord, NonFinite

PROBLEM_NAMES = ("problem", "query", "prompt")
STEPS_NAMES = ("steps", "answer", "completions")

_BLANK_LINE = re.compile(r"\n[^\S\n]*\r?\n")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A problem and the steps of its solution.

    An `unfinished` solution is a partial one, as in a search: a blank line terminates its last step.
    """

    problem: str
    steps: tuple[str, ...]
    unfinished: bool = False


def record_from(fields: Mapping[str, Any]) -> Record:
    """Return the record of a mapping, by any of the accepted names; raise InvalidRecord.

    >>> record_from({"query": "1+1?", "answer": ["2"]})
    Record(problem='1+1?', steps=('2',), unfinished=False)
    """
    problem_names = [name for name in PROBLEM_NAMES if name in fields]
    steps_names = [name for name in STEPS_NAMES if name in fields]
    if len(steps_names) > 1 and "answer" in steps_names and not isinstance(fields["answer"], list | tuple):
        steps_names.remove("answer")
    if (count := _whole_answers(fields)) and steps_names == ["completions"]:
        raise InvalidRecord(
            f"`completions` holds {count} whole answers of one problem, not the steps of one: write one line "
            "per answer, with `steps`, the answer split at blank lines: "
            "jq -c '.completions[] as $a | .steps = ($a | split(\"\\n\\n\")) | del(.completions, .id)'"
        )
    problem = _agreed("problem", {name: _problem(name, fields[name]) for name in problem_names})
    steps = _agreed("steps", {name: _steps(name, fields[name]) for name in steps_names})
    return Record(problem, steps)


def _agreed(meaning: str, values: Mapping[str, T]) -> T:
    if not values:
        raise InvalidRecord(f"`{meaning}` is missing")
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise InvalidRecord(f"`{first}` and `{name}` are both given and differ")
    return value


def _problem(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise InvalidRecord(
            f"`{name}` must be a string, not a list (of chat messages?): give only the text of the problem; "
            "the pair's chat template adds the turns"
        )
    raise InvalidRecord(f"`{name}` must be a string, not {_json_type(value)}")


def _steps(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidRecord(f"`{name}` must be a list of strings, not {_json_type(value)}")
    for position, step in enumerate(value):
        if not isinstance(step, str):
            raise InvalidRecord(f"`{name}[{position}]` must be a string, not {_json_type(step)}")
    return tuple(value)


def _whole_answers(fields: Mapping[str, Any]) -> int:
    """Return the number of `completions` if they are whole answers, 0 if they are steps.

    Whole answers have blank lines, which separate steps, or a boxed result each, or `scores`: one list each.
    TRL's steps have one label each.
    """
    completions, labels, scores = (fields.get(name) for name in ("completions", "labels", "scores"))
    if not isinstance(completions, list | tuple) or not completions:
        return 0
    texts = [text.strip() for text in completions if isinstance(text, str)]
    if isinstance(labels, list) and len(labels) == len(completions):
        return 0
    lists_of_scores = (
        isinstance(scores, list)
        and len(scores) == len(completions)
        and all(isinstance(one, list) for one in scores)
    )
    boxes = sum("\\boxed" in text for text in texts)
    several = boxes > 1 and "\\boxed" in texts[0]
    whole = lists_of_scores or several or any(_BLANK_LINE.search(text) for text in texts)
    return len(completions) if whole else 0


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one solution of L tokens and n steps, in units of beta times nats.

    Log-prob j is that of token j + 1; `first_summed` and `step_ends` [n] are indices into the log-probs, the
    first one summed and the last one of each step. `response_start` is the index of the first response token.
    The last four are None unless the scorer was loaded with `tokens=True`: `token_ids` int64 [L], the text
    that each of them adds, `policy_logprobs` and `reference_logprobs` float32 [L-1], nats.
    """

    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float
    num_tokens: int
    response_start: int
    first_summed: int
    step_ends: list[int]
    special_text: bool = False
    token_ids: NDArray[np.int64] | None = None
    token_texts: list[str] | None = None
    policy_logprobs: NDArray[np.float32] | None = None
    reference_logprobs: NDArray[np.float32] | None = None


Outcome = Result | InputError | NonFinite

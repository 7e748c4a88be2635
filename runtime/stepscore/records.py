"""Records to score, and the ways to read one from the fields of a line.

By default a record is read by any of the accepted field names. An `answer` or `solution` that is no list is,
next to another field of steps, a final answer or a gold solution. `completions` are steps in TRL's data sets;
whole answers, as in files of best-of-N samples, are rejected. A record holds texts or token ids, not both.
jobs/schema.py defines the lines of a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from stepscore.errors import InputError, InvalidRecord

PROBLEM_NAMES = ("problem", "question", "query", "prompt")
STEPS_NAMES = ("steps", "solution", "answer", "completions")
MESSAGES = "messages"
"""Name of a conversation: read for what no other field gives."""
IDS_NAMES = ("prompt_token_ids", "response_token_ids")

OTHER_TEXTS = ("answer", "solution")
"""Names of steps that are something else where they hold no list: a final answer, a gold solution."""

_BLANK_LINES = re.compile(r"\r?\n(?:[^\S\n]*\n)+")
_LISTED_FIELDS = 12

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A problem and the steps of its solution.

    An `unfinished` solution is a partial one, as in a search: a blank line terminates its last step.
    """

    problem: str
    steps: tuple[str, ...]
    unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a record: from the fields of these names, where given, else by any of the accepted names.

    With `split`, steps may also be one text, which is split at blank lines.
    """

    problem_field: str | None = None
    steps_field: str | None = None
    split: bool = False

    def record(self, fields: Mapping[str, Any]) -> AnyRecord:
        """Return the record of a mapping, of texts or of token ids; raise InvalidRecord, also for both.

        >>> Reading(steps_field="out", split=True).record({"question": "1+1?", "out": "Add.\\n\\nSo 2."})
        Record(problem='1+1?', steps=('Add.', 'So 2.'), unfinished=False)
        """
        ids = [name for name in IDS_NAMES if fields.get(name) is not None]
        if ids:
            texts = [name for name in self._texts_names(fields) if fields[name] is not None]
            if texts:
                raise InvalidRecord(
                    f"`{texts[0]}` and `{ids[0]}` are both given: a record holds texts or token ids; remove "
                    "or rename one of them"
                )
            return TokenRecord.of(fields)
        problems = {name: _problem(name, fields[name]) for name in self._problem_names(fields)}
        steps_names = self._steps_names(fields)
        if self.steps_field is None and steps_names == ["completions"]:
            _reject_whole_answers(fields)
        steps = {name: self._steps(name, fields[name]) for name in steps_names}
        lacks_problem = not problems and self.problem_field is None
        lacks_steps = not steps and self.steps_field is None
        if (lacks_problem or lacks_steps) and fields.get(MESSAGES) is not None:
            problem, solution = _conversation(fields[MESSAGES])
            if self.problem_field is None:
                problems[f"{MESSAGES}[0]"] = problem
            if lacks_steps and solution is not None:
                steps[f"{MESSAGES}[1]"] = split_at_blank_lines(solution)
        if not problems:
            raise _missing("problem", PROBLEM_NAMES, self.problem_field, fields)
        if not steps:
            raise _missing("steps", STEPS_NAMES, self.steps_field, fields)
        return Record(_agreed(problems, "problem-field"), _agreed(steps, "steps-field"))

    def options(self) -> dict[str, str]:
        """Return what differs from the default, as text."""
        given = {"problem_field": self.problem_field, "steps_field": self.steps_field}
        return {name: value for name, value in given.items() if value is not None} | (
            {"split": "yes"} if self.split else {}
        )

    def _problem_names(self, fields: Mapping[str, Any]) -> list[str]:
        names = PROBLEM_NAMES if self.problem_field is None else (self.problem_field,)
        return [name for name in names if name in fields]

    def _steps_names(self, fields: Mapping[str, Any]) -> list[str]:
        if self.steps_field is not None:
            return [self.steps_field] if self.steps_field in fields else []
        given = [name for name in STEPS_NAMES if name in fields]
        lists = [name for name in given if isinstance(fields[name], list | tuple)]
        others = [name for name in given if name not in OTHER_TEXTS]
        if lists or others:
            return [name for name in given if name in lists or name in others]
        if self.split or fields.get(MESSAGES) is None:
            return given[:1]  # `solution` before `answer`, which beside it is the final answer
        return []

    def _texts_names(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the fields that hold a text to score, not a final answer or a gold solution."""
        names = (
            name
            for name in ((self.steps_field,) if self.steps_field else (*STEPS_NAMES, MESSAGES))
            if name == self.steps_field or name not in OTHER_TEXTS or isinstance(fields.get(name), list)
        )
        return [*self._problem_names(fields), *(name for name in names if name in fields)]

    def _steps(self, name: str, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            if self.split:
                return split_at_blank_lines(value)
            raise InvalidRecord(
                f"`{name}` must be a list of strings, not a string: --split splits one text at blank lines"
            )
        if not isinstance(value, list | tuple):
            raise InvalidRecord(f"`{name}` must be a list of strings, not {_json_type(value)}")
        for position, step in enumerate(value):
            if not isinstance(step, str):
                raise InvalidRecord(f"`{name}[{position}]` must be a string, not {_json_type(step)}")
        return tuple(value)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A prompt and a response as token ids, which are scored as they are: nothing is added or tokenized.

    `step_ends` are indices into the response, the last token of each step; None: they are found by the
    separator.
    """

    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    step_ends: tuple[int, ...] | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TokenRecord:
        """Return the record of a mapping with these names; raise InvalidRecord.

        >>> TokenRecord.of({"prompt_token_ids": [1, 2], "response_token_ids": [3]})
        TokenRecord(prompt_token_ids=(1, 2), response_token_ids=(3,), step_ends=None)
        """
        prompt, response = (_integers(name, fields.get(name)) for name in IDS_NAMES)
        ends = fields.get("step_ends")
        return cls(prompt, response, None if ends is None else _integers("step_ends", ends))

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of prompt and response."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


AnyRecord = Record | TokenRecord


def _integers(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise InvalidRecord(f"`{name}` must be a list of integers, not {_json_type(value)}")
    for position, each in enumerate(value):
        if not isinstance(each, int | np.integer) or isinstance(each, bool):
            raise InvalidRecord(f"`{name}[{position}]` must be an integer, not {_json_type(each)}")
        if not -(2**63) <= each < 2**63:
            raise InvalidRecord(f"`{name}[{position}]` is not a 64-bit integer")
    if not value:
        raise InvalidRecord(f"`{name}` is empty")
    return tuple(int(each) for each in value)


BY_ACCEPTED_NAMES = Reading()
_WRITTEN = Reading(problem_field="problem", steps_field="steps")


def record_from(fields: Mapping[str, Any]) -> Record:
    """Return the record of a mapping of texts, by any of the accepted names; raise InvalidRecord.

    >>> record_from({"query": "1+1?", "answer": ["2"]})
    Record(problem='1+1?', steps=('2',), unfinished=False)
    """
    record = of_texts(BY_ACCEPTED_NAMES.record(fields))
    if isinstance(record, InputError):
        raise record
    return record


def of_texts(record: AnyRecord | InputError) -> Record | InputError:
    """Return the record where only texts can be used; InvalidRecord instead of one of token ids."""
    if not isinstance(record, TokenRecord):
        return record
    return InvalidRecord(
        "the record holds token ids, but texts are needed here: `problem` and `steps`",
        hint="score token ids with `stepscore score` or Scorer.score_ids",
    )


def record_of_output(fields: Mapping[str, Any]) -> AnyRecord:
    """Return the record that an output line answers: `problem` and `steps` decide, where both are there.

    >>> record_of_output({"problem": "1+1?", "steps": ["2"], "question": "1-1?"})
    Record(problem='1+1?', steps=('2',), unfinished=False)
    """
    both = "problem" in fields and isinstance(fields.get("steps"), list)
    return (_WRITTEN if both else BY_ACCEPTED_NAMES).record(fields)


def split_at_blank_lines(text: str) -> tuple[str, ...]:
    r"""Return the paragraphs of a text; lines of white space are blank, and CRLF ends a line too.

    Several blank lines count as one, those around the text as none. (`split_steps` is for a text that a model
    goes on with, and loses no character of it.)

    >>> split_at_blank_lines("3 * 4 = 12.\r\n\r\nSo\n12.\n  \n\nDone.\n\n")
    ('3 * 4 = 12.', 'So\n12.', 'Done.')
    """
    stripped = text.strip()
    return tuple(_BLANK_LINES.split(stripped)) if stripped else ()


def _missing(
    meaning: str, accepted: Iterable[str], chosen: str | None, fields: Mapping[str, Any]
) -> InvalidRecord:
    names = [repr(name[:40]) for name in fields]
    found = ", ".join(names[:_LISTED_FIELDS]) + (", ..." if len(names) > _LISTED_FIELDS else "")
    if chosen is not None:
        return InvalidRecord(f"there is no field `{chosen}`; the fields are {found or 'none'}")
    either = ", ".join(f"`{name}`" for name in accepted)
    return InvalidRecord(
        f"`{meaning}` is missing: give {either} or `{MESSAGES}`, or name another field by --{meaning}-field; "
        f"the fields are {found or 'none'}"
    )


def _agreed(values: Mapping[str, T], option: str) -> T:
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise InvalidRecord(f"`{first}` and `{name}` are both given and differ: name one by --{option}")
    return value


def _problem(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise InvalidRecord(
            f"`{name}` must be a string, not a list (of chat messages?): give only the text of the problem, "
            f"or the whole conversation as `{MESSAGES}`; the pair's chat template adds the turns"
        )
    raise InvalidRecord(f"`{name}` must be a string, not {_json_type(value)}")


def _conversation(messages: object) -> tuple[str, str | None]:
    """Return the problem and the solution, if any, of one user and one assistant message."""
    if not isinstance(messages, list | tuple):
        raise InvalidRecord(f"`{MESSAGES}` must be a list, not {_json_type(messages)}")
    turns = [_turn(f"{MESSAGES}[{position}]", message) for position, message in enumerate(messages)]
    match turns:
        case [("user", problem)]:
            return problem, None
        case [("user", problem), ("assistant", solution)]:
            return problem, solution
    roles = ", ".join(role[:20] for role, _ in turns[:_LISTED_FIELDS]) or "none"
    raise InvalidRecord(
        f"`{MESSAGES}` must be one user and one assistant message, not {roles}; drop a system message: the "
        "pair's chat template has its own"
    )


def _turn(name: str, message: object) -> tuple[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InvalidRecord(f"`{name}` must be an object with `role` and `content`")
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise InvalidRecord(f"`{name}.{key}` must be a string, not {_json_type(message[key])}")
    lost = [key for key, value in message.items() if key not in ("role", "content") and value]
    if lost:
        raise InvalidRecord(f"`{name}.{lost[0][:40]}` would not be scored: add it to `content`, or remove it")
    return message["role"], message["content"]


def _reject_whole_answers(fields: Mapping[str, Any]) -> None:
    if count := _whole_answers(fields):
        raise InvalidRecord(
            f"`completions` holds {count} whole answers of one problem, not the steps of one: write one line "
            "per answer, with `steps`, the answer split at blank lines: "
            "jq -c '.completions[] as $a | .steps = ($a | split(\"\\n\\n\")) | del(.completions, .id)'"
        )


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
    whole = lists_of_scores or several or any(_BLANK_LINES.search(text) for text in texts)
    return len(completions) if whole else 0


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

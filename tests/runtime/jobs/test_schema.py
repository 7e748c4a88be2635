"""The one definition of a job's lines: what it accepts, and what its JSON Schema says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.scored_lines import failed, scored

from stepscore.errors import InvalidJson, InvalidRecord, TooLong
from stepscore.jobs.jsonl import output_line, parse_line
from stepscore.jobs.schema import (
    OUTPUT_NAMES,
    ErrorLine,
    LineError,
    ScoredLine,
    decode_line,
    json_schemas,
)
from stepscore.records import IDS_NAMES, MESSAGES, PROBLEM_NAMES, STEPS_NAMES, AnyRecord
from stepscore.results import Result

INPUT = {"id": "a", "problem": "p", "steps": ["x", "y"], "label": -1}


def result(**fields: Any) -> Result:
    """A result of two steps and five tokens."""
    given: dict[str, Any] = {
        "cumulative_rewards": [0.1, 0.3],
        "step_rewards": [0.1, 0.2],
        "outcome_reward": 0.3,
        "num_tokens": 5,
        "response_start": 2,
        "first_summed": 1,
        "step_ends": [2, 3],
    }
    return Result(**given | fields)


TOKENS = {
    "token_ids": np.arange(5),
    "token_texts": list("abcde"),
    "policy_logprobs": np.array([-0.1, -1.5, -1e-5, -0.0], np.float32),
    "reference_logprobs": np.array([-0.2, -1.25, -3.0, -16777216.0], np.float32),
}


@pytest.mark.parametrize("fields", [{}, {"special_text": True}, TOKENS], ids=["plain", "special", "tokens"])
def test_a_written_line_is_read_back_as_it_was(fields: dict[str, Any]) -> None:
    outcome = result(**fields)
    text = output_line(parse_line(json.dumps(INPUT).encode(), 0), outcome)
    assert decode_line(text) == ScoredLine.of("a", outcome)


def test_a_written_error_is_read_back_as_it_was() -> None:
    error = TooLong("5000 tokens")
    line = output_line(parse_line(json.dumps(INPUT).encode(), 0), error)
    assert (
        decode_line(line) == ErrorLine.of("a", error) == ErrorLine("a", LineError("too_long", "5000 tokens"))
    )


def test_a_line_without_tokens_has_no_token_fields() -> None:
    line = json.loads(output_line(parse_line(json.dumps(INPUT).encode(), 0), result()))
    assert set(OUTPUT_NAMES) - line.keys() == {"error", "special_text", "token_rewards", *TOKENS}


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_logprobs_read_back_to_the_same_float32(values: list[float]) -> None:
    array = np.array(values, np.float32)
    line = ScoredLine.of("a", result(policy_logprobs=array))
    assert line.policy_logprobs is not None
    assert np.array_equal(np.array(line.policy_logprobs, np.float32), array)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b"{", InvalidJson, "not JSON"),
        (b"\xff", InvalidJson, "not JSON"),
        (b'{"x": ' + b"[" * 100_000, InvalidJson, "not JSON"),
        (b"[]", InvalidRecord, "Expected `object`, got `array`"),
        (b'{"id": 1, "problem": "p", "steps": ["s"]}', InvalidRecord, "score the record first"),
        (b'{"id": 1, "error": "no"}', InvalidRecord, r"at `\$.error`"),
        (json.dumps({**scored([0.1]), "step_rewards": ["x"]}).encode(), InvalidRecord, "step_rewards"),
        (json.dumps({**scored([0.1]), "response_start": 0}).encode(), InvalidRecord, "response_start"),
        (json.dumps({**scored([0.1]), "step_rewards": []}).encode(), InvalidRecord, "length >= 1"),
    ],
)
def test_a_line_that_score_did_not_write_is_an_error(
    text: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decode_line(text)


@pytest.mark.parametrize(
    "missing", [name for name in scored([0.1]) if name not in {"problem", "steps", "first_summed"}]
)
def test_every_field_but_those_of_tokens_is_required(missing: str) -> None:
    line = scored([0.1])
    del line[missing]
    with pytest.raises(InvalidRecord, match=f"`{missing}`"):
        decode_line(json.dumps(line).encode())


def test_an_error_line_is_read_whatever_else_it_has() -> None:
    assert decode_line(json.dumps(failed("a") | {"more": 1}).encode()) == ErrorLine(
        "a", LineError("too_long", "why")
    )


# JSON Schema.


def definition(kind: str) -> dict[str, Any]:
    schema = json_schemas()[kind]
    return schema["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_every_output_field_is_described() -> None:
    scored_fields, error_fields = (definition(kind)["properties"] for kind in ("scored", "error"))
    assert {*scored_fields, "error"} == set(OUTPUT_NAMES)
    assert all(field["description"] for field in scored_fields.values())
    assert set(error_fields) == {"id", "error"}


def test_the_input_is_described_by_every_accepted_name() -> None:
    described = definition("input")
    names = {"id", *PROBLEM_NAMES, *STEPS_NAMES, MESSAGES, *IDS_NAMES, "step_ends"}
    assert set(described["properties"]) == names
    json.dumps(json_schemas())


IDS = {"prompt_token_ids": [5, 6], "response_token_ids": [7, 8]}
CONVERSATION = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a\n\nb"}]
ACCEPTED = [
    *({problem: "p", steps: ["s"]} for problem in PROBLEM_NAMES for steps in STEPS_NAMES),
    {"problem": "p", "steps": ["s"], "answer": "420"},
    {"problem": "p", "completions": ["s"], "answer": {"value": 420}, "id": 7, "label": -1},
    {"problem": "p", "steps": ["s"], "id": None},
    {"problem": "p", "steps": ["s"], "solution": "gold", "messages": "any"},
    {"messages": CONVERSATION},
    {"question": "p", "solution": "one text", "messages": CONVERSATION},
    IDS,
    IDS | {"step_ends": [0, 1], "id": 7},
    IDS | {"step_ends": None, "problem": None, "steps": None, "messages": None},
    IDS | {"answer": "420", "solution": "gold", "label": 0},
    {"problem": "p", "steps": ["s"], "prompt_token_ids": None, "step_ends": "any"},
]
REJECTED = [
    {"steps": ["s"]},
    {"problem": "p"},
    {"problem": 1, "steps": ["s"]},
    {"problem": "p", "steps": "s"},
    {"problem": "p", "steps": [1]},
    {"problem": "p", "answer": "420"},
    {"problem": "p", "solution": "one text"},
    {"problem": "p", "messages": CONVERSATION[:1]},
    {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
    {"problem": "p", "steps": ["s"], "id": 1.5},
    {"problem": "p", "steps": ["s"], "id": "x" * 1001},
    {"prompt_token_ids": [1]},
    IDS | {"response_token_ids": []},
    IDS | {"response_token_ids": [1.5]},
    IDS | {"step_ends": "1"},
    IDS | {"problem": "p"},
    IDS | {"messages": CONVERSATION},
    IDS | {"answer": ["s"]},
    {"problem": "p", "steps": ["s"], "prompt_token_ids": [1]},
    [],
]


@pytest.mark.parametrize(("line", "valid"), [(a, True) for a in ACCEPTED] + [(r, False) for r in REJECTED])
def test_the_schema_of_the_input_accepts_what_the_parser_does(line: Any, valid: bool) -> None:
    assert isinstance(parse_line(json.dumps(line).encode(), 0).record, AnyRecord) is valid
    assert validates(line, json_schemas()["input"]) is valid


TYPES = {"string": str, "array": list, "object": dict, "null": type(None), "integer": int}


def validates(value: Any, schema: dict[str, Any]) -> bool:
    """JSON Schema, as far as these schemas use it; a keyword that is missing here is a KeyError."""
    checks = {
        "title": lambda _: True,
        "description": lambda _: True,
        "type": lambda name: isinstance(value, TYPES[name]) and not isinstance(value, bool),
        "items": lambda items: all(validates(item, items) for item in value),
        "minItems": lambda least: len(value) >= least,
        "maxLength": lambda most: len(value) <= most,
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
        "properties": lambda fields: all(
            validates(value[name], field) for name, field in fields.items() if name in value
        ),
        "required": lambda names: all(name in value for name in names),
        "anyOf": lambda several: any(validates(value, each) for each in several),
        "allOf": lambda several: all(validates(value, each) for each in several),
        "not": lambda other: not validates(value, other),
    }
    order = ["type", *(keyword for keyword in schema if keyword != "type")]
    return all(checks[keyword](schema[keyword]) for keyword in order if keyword in schema)

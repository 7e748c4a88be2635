"""Samples of trainers become the records that were meant, or errors: never ids of another vocabulary."""

from __future__ import annotations

from typing import Any

import pytest

from stepscore.errors import InvalidRecord, NoSteps
from stepscore.integrations.rollouts import RolloutReader
from stepscore.records import Record, TokenRecord

PROBLEM, SOLUTION = "1 + 1?", "1 + 1 = 2.\n\nSo 2."
END = "<|im_end|>"


@pytest.fixture(scope="module")
def reader(direct: Any) -> RolloutReader:
    return RolloutReader(direct.pair)


def test_a_text_is_a_finished_solution_of_its_steps(reader: RolloutReader) -> None:
    expected = Record(PROBLEM, ("1 + 1 = 2.", "So 2."))
    assert reader.of_text(PROBLEM, SOLUTION) == expected
    turns = [{"role": "user", "content": PROBLEM}], [{"role": "assistant", "content": SOLUTION}]
    assert reader.of_text(*turns) == expected


def test_a_text_of_white_space_has_no_steps(reader: RolloutReader) -> None:
    assert isinstance(reader.of_text(PROBLEM, " \n"), NoSteps)


def test_response_ids_follow_the_prompt_in_the_template(reader: RolloutReader, direct: Any) -> None:
    response = direct.tokens(SOLUTION + END)
    found = reader.of_response_ids(PROBLEM, SOLUTION, response)
    assert found == TokenRecord(tuple(direct.tokens(direct.prompt(PROBLEM))), tuple(response))


@pytest.mark.parametrize("text", [SOLUTION, SOLUTION + END, SOLUTION.replace("\n", ""), f" {SOLUTION}\n"])
def test_ids_may_come_with_control_tokens_or_without_and_with_other_white_space(
    reader: RolloutReader, direct: Any, text: str
) -> None:
    assert isinstance(reader.of_ids([1], direct.tokens(SOLUTION + END), text), TokenRecord)


def test_ids_of_another_tokenizer_are_an_error(reader: RolloutReader, direct: Any) -> None:
    shifted = [token + 1 for token in direct.tokens(SOLUTION)]
    for found in (reader.of_response_ids(PROBLEM, SOLUTION, shifted), reader.of_ids([1], shifted, SOLUTION)):
        assert isinstance(found, InvalidRecord)
        assert "by the pair's tokenizer" in found.message


def test_ids_outside_the_vocabulary_are_left_to_the_scorer(reader: RolloutReader, direct: Any) -> None:
    assert isinstance(reader.of_ids([1], [*direct.tokens(SOLUTION), -5, 10**6], SOLUTION), TokenRecord)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x?"}], "system message"),
        ([{"role": "user", "content": "x?"}] * 2, "one user message, not user, user"),
        ([], "one user message, not none"),
        (3, "must be a list"),
    ],
)
def test_another_prompt_is_an_error_that_names_it(reader: RolloutReader, prompt: Any, message: str) -> None:
    found = reader.of_text(prompt, "2")
    assert isinstance(found, InvalidRecord)
    assert found.message.startswith("prompt")
    assert message in found.message


def test_a_system_message_is_dropped_when_asked(direct: Any) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROBLEM}]
    assert RolloutReader(direct.pair, drop_system=True).of_text(prompt, "2") == Record(PROBLEM, ("2",))


# Decoded queries


def test_a_query_in_the_template_is_tokenized_with_its_control_tokens(
    reader: RolloutReader, direct: Any
) -> None:
    prompt = direct.prompt(PROBLEM)
    found = reader.of_query(prompt + SOLUTION + END, prompt)
    expected = tuple(direct.tokens(prompt)), tuple(direct.tokens(SOLUTION + END))
    assert found == TokenRecord(*expected)


def test_a_query_may_have_another_system_message(reader: RolloutReader, direct: Any) -> None:
    prompt = direct.prompt(PROBLEM).replace("Please reason", "Think")
    found = reader.of_query(prompt + SOLUTION, prompt)
    assert isinstance(found, TokenRecord)
    assert found.prompt_token_ids == tuple(direct.tokens(prompt))


def test_a_query_without_a_template_is_put_into_it(reader: RolloutReader, direct: Any) -> None:
    found = reader.of_query(PROBLEM + SOLUTION, PROBLEM)
    assert found == TokenRecord(tuple(direct.tokens(direct.prompt(PROBLEM))), tuple(direct.tokens(SOLUTION)))


@pytest.mark.parametrize(
    ("query", "prompt", "message"),
    [
        ("on, 1 + 1?2", "A question, 1 + 1?", "does not begin with its prompt"),
        ("<|im_start|>user\nx?2", "<|im_start|>user\nx?", "does not end as the pair's do"),
        ("<|start_header_id|>user x?2", "<|start_header_id|>user x?", "control token of another tokenizer"),
        ("x?", "x?", "`response_token_ids` is empty"),
        (None, "x?", "query must be a string"),
    ],
)
def test_a_query_that_cannot_be_read_is_an_error(
    reader: RolloutReader, query: Any, prompt: str, message: str
) -> None:
    found = reader.of_query(query, prompt)
    assert isinstance(found, InvalidRecord)
    assert message in found.message

"""Lines of token ids: scored as they are, beside lines of texts, and resumed as they are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import outputs
from testing.fake_scorer import FakeScorer

from stepscore.errors import DuplicateId, IdsRepeat, InputError, ResumeMismatch
from stepscore.jobs.job import JobOptions, Tally, run_to_file, run_to_stream
from stepscore.jobs.jsonl import parse_line
from stepscore.jobs.schema import ScoredLine, decode_line
from stepscore.jobs.seal import fingerprint_path
from stepscore.jobs.source import parsed_lines
from stepscore.records import Reading, TokenRecord

Fields = dict[str, Any]
IDS: Fields = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5, 6, 7]}
TEXT: Fields = {"id": "t", "problem": "p", "steps": ["1", "2"]}
TOKEN_LEVEL = {"policy_logprobs", "reference_logprobs", "token_rewards"}


def as_input(*records: Fields) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs.stop_clock(monkeypatch)


def answers(*records: Fields, tokens: bool = False) -> list[Fields]:
    out = io.BytesIO()
    run_to_stream(FakeScorer(), io.BytesIO(as_input(*records)), out, Tally(), JobOptions(tokens=tokens))
    return outputs.answers(out.getvalue())


def record_of(fields: Fields, reading: Reading | None = None) -> object:
    return parse_line(json.dumps(fields).encode(), 0, (reading or Reading()).record).record


# What a line gives


def test_a_line_of_ids_gets_its_rewards_and_keeps_its_fields() -> None:
    (answer,) = answers(IDS | {"id": 7, "step_ends": [1, 3], "group": "g"})
    assert {name: answer[name] for name in (*IDS, "id", "group")} == IDS | {"id": 7, "group": "g"}
    assert (answer["num_tokens"], answer["response_start"], answer["first_summed"]) == (7, 3, 0)
    assert answer["step_ends"] == [1, 3]
    assert answer["cumulative_rewards"] == pytest.approx([0.009, 0.022])
    assert answer["outcome_reward"] == answer["cumulative_rewards"][-1]


def test_token_level_values_come_with_tokens_only() -> None:
    (short,), (long,) = answers(IDS), answers(IDS, tokens=True)
    assert TOKEN_LEVEL & short.keys() == set()
    assert short == {name: value for name, value in long.items() if name not in TOKEN_LEVEL}
    assert long["token_rewards"] == [0.004, 0.005, 0.006, 0.007]
    assert all(len(long[name]) == 4 for name in TOKEN_LEVEL)


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_token_values_read_back_to_the_same_float32(ids: list[int]) -> None:
    (line,) = answers(IDS | {"response_token_ids": ids}, tokens=True)
    scorer = FakeScorer()
    ((_, result),) = scorer.stream([(0, TokenRecord((1, 2, 3), tuple(ids)))])
    for name in TOKEN_LEVEL:
        np.testing.assert_array_equal(np.array(line[name], np.float32), getattr(result, name))


def test_a_written_line_is_read_back_and_may_be_scored_again() -> None:
    (answer,) = answers(IDS, tokens=True)
    line = decode_line(json.dumps(answer).encode())
    assert isinstance(line, ScoredLine)
    assert line.token_rewards == answer["token_rewards"]
    assert answers(answer, tokens=True) == [answer]


def test_lines_of_texts_and_ids_may_be_mixed() -> None:
    tally, out = Tally(), io.BytesIO()
    data = as_input(IDS | {"id": "i"}, TEXT, {"problem": "p"}, IDS)
    run_to_stream(FakeScorer(), io.BytesIO(data), out, tally)
    found = outputs.answers(out.getvalue())
    assert [line["id"] for line in found] == ["i", "t", 2, 3]
    assert (tally.records, tally.tokens, tally.errors.total()) == (4, 7 + 3 + 7, 1)


# What a line may hold


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (TEXT | IDS, "`problem` and `prompt_token_ids` are both given: a record holds texts or token ids"),
        (TEXT | {"response_token_ids": [1]}, "`problem` and `response_token_ids` are both given"),
        (IDS | {"steps": ["1"]}, "`steps` and `prompt_token_ids` are both given"),
        (IDS | {"answer": ["1"]}, "`answer` and `prompt_token_ids` are both given"),
        (IDS | {"messages": []}, "`messages` and `prompt_token_ids` are both given"),
        ({"prompt_token_ids": [1]}, "`response_token_ids` must be a list of integers, not null"),
        (IDS | {"prompt_token_ids": [2**63]}, "`prompt_token_ids[0]` is not a 64-bit integer"),
        (IDS | {"prompt_token_ids": [10**400]}, "`prompt_token_ids[0]` is not a 64-bit integer"),
        (IDS | {"step_ends": [0.5]}, "`step_ends[0]` must be an integer, not a number"),
    ],
)
def test_an_invalid_line_of_ids_is_its_own_error(fields: Fields, said: str) -> None:
    bad, good = answers(fields, IDS | {"id": "good"})
    assert (bad["error"]["code"], good["id"]) == ("invalid_record", "good")
    assert said in bad["error"]["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"answer": "7", "solution": "gold"},
        {"problem": None, "steps": None, "messages": None, "completions": None},
        {"step_ends": None},
    ],
    ids=str,
)
def test_answers_and_nulls_may_stand_beside_ids(more: Fields) -> None:
    assert record_of(IDS | more) == TokenRecord((1, 2, 3), (4, 5, 6, 7))


def test_only_the_named_fields_are_texts_beside_ids() -> None:
    reading = Reading(problem_field="task", steps_field="out")
    assert isinstance(record_of(IDS | {"problem": "p", "steps": ["s"]}, reading), TokenRecord)
    assert isinstance(record_of(IDS | {"task": "p"}, reading), InputError)
    assert isinstance(record_of(IDS | {"out": "s"}, reading), InputError)


def test_nulls_of_ids_beside_texts_are_no_ids() -> None:
    assert answers(TEXT | dict.fromkeys(IDS))[0]["steps"] == TEXT["steps"]


# Ids of lines


def test_a_duplicate_id_is_found_among_texts_and_ids() -> None:
    data = as_input(TEXT | {"id": "0"}, IDS | {"id": 0}, IDS, TEXT | {"id": 2})
    codes = [isinstance(line.record, DuplicateId) for line in parsed_lines(io.BytesIO(data))]
    assert codes == [False, True, False, True]


def test_samples_of_one_prompt_that_share_its_id_stop_the_job() -> None:
    samples = [IDS | {"id": "p", "response_token_ids": [token]} for token in range(3)]
    with pytest.raises(IdsRepeat):
        next(parsed_lines(io.BytesIO(as_input(*samples))))


# Resuming

RECORDS = [IDS | {"id": "a"}, TEXT, IDS | {"prompt_token_ids": [1] * 9000}, IDS | {"step_ends": [0, 3]}]


def run(path: Path, *records: Fields, **options: Any) -> Tally:
    tally = Tally()
    run_to_file(FakeScorer(), io.BytesIO(as_input(*records)), path, tally, JobOptions(**options))
    return tally


@pytest.mark.parametrize("tokens", [False, True])
def test_a_run_continues_after_any_line(tmp_path: Path, tokens: bool) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole, *RECORDS, tokens=tokens)
    for limit in range(len(RECORDS) + 1):
        resumed = run(part, *RECORDS, tokens=tokens, limit=limit).resumed
        assert resumed == max(0, limit - 1)
    assert part.read_bytes() == whole.read_bytes()


def test_lines_of_an_earlier_version_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, TEXT)
    path.write_bytes(path.read_bytes().replace(b',"first_summed":0', b""))
    fingerprint_path(path).unlink()
    assert run(path, TEXT, IDS).resumed == 1


@pytest.mark.parametrize(
    ("index", "more", "said"),
    [
        (0, {"response_token_ids": [4, 5, 6, 8]}, "`response_token_ids` was [4, 5, 6, 7], now [4, 5, 6, 8]"),
        (0, {"response_token_ids": [4]}, "`response_token_ids` was"),
        (2, {"prompt_token_ids": [1]}, "the record has been changed"),
        (3, {"step_ends": [1, 3]}, "`step_ends` was [0,3], now [1,3]"),
    ],
)
def test_an_input_line_of_ids_that_changed_is_refused(
    tmp_path: Path, index: int, more: Fields, said: str
) -> None:
    run(tmp_path / "out", *RECORDS)
    changed = [*RECORDS[:index], RECORDS[index] | more, *RECORDS[index + 1 :]]
    with pytest.raises(ResumeMismatch) as raised:
        run(tmp_path / "out", *changed)
    assert f"its line {index + 2} does not answer line {index + 1} of the input: {said}" in str(raised.value)


@pytest.mark.parametrize(
    "edit",
    [
        {"num_tokens": 8},
        {"response_start": 2},
        {"token_rewards": [1.0]},
        {"cumulative_rewards": [1.0]},
        {"step_ends": [2, 3]},
    ],
    ids=str,
)
def test_an_output_line_of_ids_that_was_edited_is_refused(tmp_path: Path, edit: Fields) -> None:
    path = tmp_path / "out"
    run(path, IDS, IDS, tokens=True)
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        header + first + json.dumps(json.loads(second) | edit, separators=(",", ":")).encode() + b"\n"
    )
    with pytest.raises(ResumeMismatch, match="its line 3 does not answer line 2"):
        run(path, IDS, IDS, tokens=True)

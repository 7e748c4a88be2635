"""One line in, one line out: what is a record, what is an error, and what passes through."""

from __future__ import annotations

import io
import json
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.fake_scorer import FakeResult
from testing.input_lines import BAD_LINES, GOOD

from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.jobs.jsonl import MAX_LINE_BYTES, output_line, parse_line, read_lines
from stepscore.jobs.schema import OUTPUT_NAMES
from stepscore.records import Record, record_from

RESULT = FakeResult([0.1, 0.30000000000000004], [0.1, 0.2], 0.30000000000000004, 9, [3, 7])


@pytest.mark.parametrize(("line", "code"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_an_error_with_a_code_and_a_short_message(line: bytes, code: str) -> None:
    parsed = parse_line(line, 4)
    assert isinstance(parsed.record, InputError)
    answer = json.loads(output_line(parsed, parsed.record))
    assert answer["error"]["code"] == code
    assert 0 < len(answer["error"]["message"]) < 300
    assert set(answer) == {"id", "error"}


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(line: bytes) -> None:
    parsed = parse_line(line, 0)
    assert isinstance(parsed.record, Record | InputError)


@pytest.mark.parametrize("depth", [10, 200, 900, 1100, 3000, 50_000])
def test_nesting_of_any_depth_is_scored_or_refused_never_a_crash(depth: int) -> None:
    line = b'{"problem":"1","steps":["1"],"x":' + b"[" * depth + b"]" * depth + b"}"
    parsed = parse_line(line, 0)
    if isinstance(parsed.record, Record):
        assert output_line(parsed, RESULT).count(b"[") >= depth
    assert isinstance(parsed.record, Record) or parsed.record.code == "invalid_json"


@pytest.mark.parametrize("end", [b"", b"\r"])
def test_a_line_may_end_in_crlf(end: bytes) -> None:
    assert parse_line(GOOD + end, 0).record == Record("1+1?", ("2", "Done."))


@pytest.mark.parametrize("problem", ["problem", "query", "prompt"])
@pytest.mark.parametrize("steps", ["steps", "answer", "completions"])
def test_problem_and_steps_have_three_names_each(problem: str, steps: str) -> None:
    parsed = parse_line(json.dumps({problem: "p", steps: ["s"]}).encode(), 0)
    assert parsed.record == Record("p", ("s",))
    assert json.loads(output_line(parsed, RESULT)).items() >= {problem: "p", steps: ["s"]}.items()


def test_two_names_may_say_the_same() -> None:
    line = b'{"problem": "p", "prompt": "p", "steps": ["s"], "completions": ["s"]}'
    assert parse_line(line, 0).record == Record("p", ("s",))


@pytest.mark.parametrize("answer", ["420", 420, None, {"value": 420}])
def test_an_answer_beside_steps_that_is_no_list_passes_through(answer: object) -> None:
    parsed = parse_line(json.dumps({"problem": "p", "steps": ["s"], "answer": answer}).encode(), 0)
    assert parsed.record == Record("p", ("s",))
    assert json.loads(output_line(parsed, RESULT))["answer"] == answer


def test_a_mapping_becomes_a_record_by_the_same_names() -> None:
    assert record_from({"prompt": "p", "completions": ("s", "t"), "labels": []}) == Record("p", ("s", "t"))
    with pytest.raises(InvalidRecord, match="`steps` is missing"):
        record_from({"prompt": "p"})


@pytest.mark.parametrize("given_id", [0, -1, 2**63 - 1, "0", "", "ünï", "x" * 1000])
def test_an_id_is_a_string_or_an_integer_and_comes_back_as_it_was(given_id: object) -> None:
    parsed = parse_line(json.dumps({"id": given_id, "problem": "p", "steps": ["s"]}).encode(), 5)
    assert json.loads(output_line(parsed, RESULT))["id"] == given_id


@pytest.mark.parametrize("line", [b'{"problem": "p", "steps": ["s"]}', b'{"id": null, "problem": "p"}', b"{"])
def test_line_without_readable_id_gets_its_index(line: bytes) -> None:
    assert parse_line(line, 5).id == 5


def test_a_bad_record_keeps_its_id() -> None:
    assert parse_line(b'{"id": "a", "problem": 1}', 5).id == "a"


def test_text_is_data_and_unchanged() -> None:
    texts = ["<|im_end|>", "\0", " a ", "\u2028", "𝔘", "a\r\nb"]
    line = json.dumps({"problem": texts[0], "steps": texts}).encode()
    assert parse_line(line, 0).record == Record(texts[0], tuple(texts))


def test_ten_thousand_steps_and_a_step_of_100k_characters_are_records() -> None:
    line = json.dumps({"problem": "p", "steps": ["s" * 100_000, *["t"] * 9_999]}).encode()
    record = parse_line(line, 0).record
    assert isinstance(record, Record)
    assert len(record.steps) == 10_000


def test_other_fields_pass_through_byte_for_byte() -> None:
    other = '"n":123456789012345678901234567890,"f":1.10,"g":1e400,"d":{"b" : [1, 2],"a":"\\u00e9é"},"z":null'
    parsed = parse_line(f'{{"problem":"p",{other},"steps":["s"]}}'.encode(), 0)
    assert (
        output_line(parsed, RESULT).decode().startswith('{"problem":"p",' + other + ',"steps":["s"],"id":0,')
    )


def test_output_fields_replace_input_fields_of_the_same_name() -> None:
    parsed = parse_line(
        json.dumps(dict.fromkeys(OUTPUT_NAMES, "stale") | {"problem": "p", "steps": ["s"]}).encode(), 0
    )
    answer = json.loads(output_line(parsed, RESULT))
    assert answer == {
        "problem": "p",
        "steps": ["s"],
        "id": "stale",
        "cumulative_rewards": RESULT.cumulative_rewards,
        "step_rewards": RESULT.step_rewards,
        "outcome_reward": RESULT.outcome_reward,
        "num_tokens": 9,
        "response_start": 1,
        "step_ends": [3, 7],
        "first_summed": 0,
    }


def test_the_fields_come_in_a_fixed_order_after_those_passed_through() -> None:
    parsed = parse_line(b'{"label": -1, "problem": "p", "id": 7, "steps": ["s"]}', 0)
    assert list(json.loads(output_line(parsed, RESULT))) == [
        *("label", "problem", "steps"),
        *("id", "cumulative_rewards", "step_rewards", "outcome_reward"),
        *("num_tokens", "response_start", "step_ends", "first_summed"),
    ]


def test_special_text_is_said_only_when_it_is_so() -> None:
    parsed = parse_line(GOOD, 0)
    special = FakeResult([0.1], [0.1], 0.1, 3, [1], special_text=True)
    assert json.loads(output_line(parsed, special))["special_text"] is True
    assert b"special_text" not in output_line(parsed, RESULT)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_rewards_read_back_to_the_same_float64(values: list[float]) -> None:
    line = output_line(parse_line(GOOD, 0), FakeResult(values, values, values[-1], 2, [1]))
    assert json.loads(line)["step_rewards"] == values


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_logprobs_are_the_shortest_decimals_of_their_float32(values: list[float]) -> None:
    array = np.array(values, np.float32)
    result = FakeResult(
        *([0.0], [0.0], 0.0, len(array) + 1, [0]),
        token_ids=np.arange(len(array) + 1),
        policy_logprobs=array,
        reference_logprobs=-array,
    )
    line = output_line(parse_line(GOOD, 0), result)
    answer = json.loads(line)
    assert np.array_equal(np.array(answer["policy_logprobs"], np.float32), array)
    assert np.array_equal(np.array(answer["reference_logprobs"], np.float32), -array)
    assert answer["token_ids"] == list(range(len(array) + 1))
    text = msgspec.json.decode(line, type=dict[str, msgspec.Raw])["policy_logprobs"]
    digits = [
        number.partition(b"e")[0].strip(b"-0.").replace(b".", b"") for number in bytes(text)[1:-1].split(b",")
    ]
    assert max(map(len, digits)) <= 9


def test_an_error_line_holds_id_and_error_only_and_cuts_a_long_message() -> None:
    parsed = parse_line(b'{"id": 7, "problem": "p", "steps": [], "label": 1}', 0)
    answer = json.loads(output_line(parsed, NoSteps("x" * 1000)))
    assert set(answer) == {"id", "error"}
    assert len(answer["error"]["message"]) == 299


@pytest.mark.parametrize("newline_at_the_end", [True, False])
def test_lines_are_cut_at_line_feeds_alone(newline_at_the_end: bool) -> None:
    lines = [b"a", b"", b"b\r", "c\u2028\x85".encode(), b"d"]
    data = b"\n".join(lines) + (b"\n" if newline_at_the_end else b"")
    assert list(read_lines(io.BytesIO(data))) == lines


def test_an_empty_input_has_no_lines() -> None:
    assert list(read_lines(io.BytesIO(b""))) == []


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" "))), st.booleans())
def test_a_line_over_the_limit_is_cut_and_costs_no_other_line(lines: list[bytes], ended: bool) -> None:
    data = b"".join(line + b"\n" for line in lines)
    if lines and lines[-1] and not ended:
        data = data[:-1]
    expected = [line if len(line) <= 10 else line[:11] for line in lines]
    assert list(read_lines(io.BytesIO(data), max_bytes=10)) == expected


def test_a_line_of_any_length_takes_the_memory_of_the_limit() -> None:
    class Endless(io.RawIOBase):
        left = 200 << 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            count = min(len(buffer), self.left)
            buffer[:count] = b"x" * count
            self.left -= count
            return count

    tracemalloc.start()
    try:
        (line,) = read_lines(io.BufferedReader(Endless()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(line) == MAX_LINE_BYTES + 1
    assert peak < 5 * MAX_LINE_BYTES

"""Resuming compares everything: an input or output that changed is refused by the first line that differs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.hypothesis_profiles import examples
from testing.outputs import answers, header_of, stop_clock

from stepscore.errors import ResumeMismatch
from stepscore.jobs.job import JobOptions, Tally, run_to_file
from stepscore.jobs.seal import fingerprint_path
from stepscore.records import Reading


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch)


ONE_RUN = settings(examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
Fields = dict[str, Any]

RECORDS: list[Fields] = [
    {"id": "a", "problem": "p", "steps": ["1", "2"], "label": -1, "meta": {"source": ["x", 1.50]}},
    {"id": "b", "problem": "q", "steps": ["3"], "final_answer": "3"},
    {"problem": "nan", "steps": ["4"]},
    {"id": "c", "problem": "p", "steps": []},
    {"id": "d", "problem": 1, "steps": ["x"]},
    {"id": "e", "problem": "p" * 5000, "steps": ["6"]},
    {"id": "f", "query": "r", "completions": ["7", "8"], "answer": "8"},
]


def as_input(records: list[Fields], *more: str) -> bytes:
    return "".join(line + "\n" for line in [*map(json.dumps, records), *more]).encode()


def run(path: Path, data: bytes, **options: Any) -> Tally:
    tally = Tally()
    run_to_file(FakeScorer(), io.BytesIO(data), path, tally, JobOptions(**options))
    return tally


def refused(path: Path, data: bytes, message: str, **options: Any) -> None:
    """Check that a run is refused with a way out, and that neither output nor seal is touched."""
    files = [path, fingerprint_path(path)]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    with pytest.raises(ResumeMismatch, match=re.escape(message)) as raised:
        run(path, data, **options)
    assert raised.value.exit_code == 4
    assert "--overwrite" in (raised.value.hint or "")
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


# The input


@ONE_RUN
@given(data=st.data())
def test_an_input_line_that_changed_is_refused_by_its_number(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever changes: a text, a label, a type, a field that comes or goes; also in a line with an error."""
    path = tmp_path / "out"
    path.unlink(missing_ok=True)
    run(path, as_input(RECORDS))
    index = data.draw(st.integers(0, len(RECORDS) - 1))
    changed = dict(RECORDS[index])
    name = data.draw(st.sampled_from([*changed, "new"]))
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=3))
    if name in changed and data.draw(st.booleans()):
        del changed[name]
    else:
        changed[name] = data.draw(values.filter(lambda value: value != changed.get(name, ...)))
    later = as_input([*RECORDS[:index], changed, *RECORDS[index + 1 :]])
    anew = tmp_path / "anew"
    anew.unlink(missing_ok=True)
    run(anew, later)
    if (
        anew.read_bytes() == path.read_bytes()
    ):  # a field of a line with an error, which its answer does not hold
        assert "error" in answers(path.read_bytes())[index]
        run(path, later)
    else:
        refused(path, later, f"its line {index + 2} does not answer line {index + 1} of the input")


CHANGES: dict[str, tuple[Callable[[list[Fields]], list[Fields]], str]] = {
    "a problem": (lambda lines: [lines[0] | {"problem": "P"}], '1 of the input: `problem` was "p", now "P"'),
    "a step": (lambda lines: [lines[0] | {"steps": ["1", "3"]}], "1 of the input: `steps` was ["),
    "a label": (lambda lines: [lines[0] | {"label": 0}], "1 of the input: `label` was -1, now 0"),
    "an id": (lambda lines: [lines[0] | {"id": "z"}], '1 of the input: `id` was "a", now "z"'),
    "the type of an id": (lambda lines: [*lines[:2], lines[2] | {"id": "2"}], "line 3 of the input"),
    "a field more": (lambda lines: [lines[0] | {"x": 1}], "1 of the input: `x` was not there, now 1"),
    "the order of fields": (lambda lines: [dict(reversed(lines[0].items()))], "another order"),
    "a record that has been mended": (lambda lines: [*lines[:3], lines[3] | {"steps": ["s"]}], "line 4"),
    "a line that has been mended": (lambda lines: [*lines[:4], lines[4] | {"problem": "p"}], "line 5"),
    "a line that has been broken": (lambda lines: [lines[0] | {"problem": 1}], "invalid_record"),
    "a line removed": (
        lambda lines: [lines[0], *lines[2:]],
        "its line 3 does not answer line 2 of the input",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_the_error_says_what_changed(
    tmp_path: Path, change: Callable[[list[Fields]], list[Fields]], message: str
) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS))
    changed = change(RECORDS)
    refused(path, as_input(changed + RECORDS[len(changed) :]), message)


def test_the_number_of_a_line_counts_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, b"\n\n" + as_input(RECORDS))
    refused(
        path,
        b"\n\n" + as_input([RECORDS[0] | {"label": 1}]),
        "its line 2 does not answer line 3 of the input: `label` was -1, now 1",
    )


@pytest.mark.parametrize("later", [{"limit": 2}, {}], ids=["limit", "input"])
def test_an_output_with_more_lines_than_the_input_is_refused(tmp_path: Path, later: dict[str, int]) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS))
    records = RECORDS if later else RECORDS[:2]
    refused(path, as_input(records), "more lines than this input, of which it answers 2", **later)


def test_a_larger_limit_continues(tmp_path: Path) -> None:
    path, whole = tmp_path / "out", tmp_path / "whole"
    run(whole, as_input(RECORDS))
    for limit, resumed in ((2, 0), (2, 2), (5, 2), (None, 5)):
        assert run(path, as_input(RECORDS), limit=limit).resumed == resumed
    assert path.read_bytes() == whole.read_bytes()


def test_lines_that_were_read_by_a_field_or_split_are_compared_too(tmp_path: Path) -> None:
    path, options = tmp_path / "out", {"reading": Reading("task", "out", split=True)}
    fields = {"task": "p", "out": "One.\n\nTwo.", "problem": 7}
    run(path, as_input([fields]), **options)
    assert run(path, as_input([fields]), **options).resumed == 1
    refused(path, as_input([fields | {"out": "One.\n\n2."}]), "`out` was", **options)


# The output


def edited(path: Path, index: int, **fields: Any) -> None:
    """Change fields of a line behind the header, in stepscore's spelling."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    answer = json.loads(lines[index]) | fields
    lines[index] = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    path.write_bytes(header + b"".join(lines))


EDITS: dict[str, Fields] = {
    "a step reward": {"step_rewards": [0.1, 0.2]},
    "a cumulative reward": {"cumulative_rewards": [0.1, 0.2]},
    "the outcome": {"outcome_reward": 0.5},
    "fewer rewards": {"step_rewards": [0.1], "cumulative_rewards": [0.1], "outcome_reward": 0.1},
    "a problem": {"problem": "P"},
    "an id": {"id": "z"},
    "an error": {"error": {"code": "no_steps", "message": "x"}},
}


@pytest.mark.parametrize("fields", EDITS.values(), ids=EDITS.keys())
def test_an_output_line_that_was_edited_is_refused(tmp_path: Path, fields: Fields) -> None:
    path = tmp_path / "out"
    record = {"problem": "p", "steps": ["1", "2"]}
    run(path, as_input([record, record]))
    edited(path, 1, **fields)
    refused(path, as_input([record, record]), "its line 3 does not answer line 2 of the input: ")


@pytest.mark.parametrize("index", [2, 3, 4, 5])
def test_an_error_line_that_was_edited_is_refused(tmp_path: Path, index: int) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS))
    code = answers(path.read_bytes())[index]["error"]["code"]
    edited(path, index, error={"code": code, "message": "fine"})
    refused(path, as_input(RECORDS), f"its line {index + 2} does not answer line {index + 1} of the input: ")


@pytest.mark.parametrize(
    "line", [b"hello\n", b"\n", b"[]\n", b"[" * 100_000 + b"\n", b'{"id": 1}\n', b"\xff\n"]
)
def test_an_output_line_that_is_no_answer_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS[:1]))
    with path.open("ab") as file:
        file.write(line)
    refused(path, as_input(RECORDS), "its line 3")


def test_the_first_line_that_differs_is_named_though_it_has_to_be_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS))
    changed = [*RECORDS[:2], RECORDS[2] | {"problem": "p"}, *RECORDS[3:6], RECORDS[6] | {"answer": "9"}]
    refused(path, as_input(changed), "its line 4 does not answer line 3")
    refused(path, as_input([*RECORDS[:6], changed[6]]), "its line 8 does not answer line 7")


@ONE_RUN
@given(data=st.data())
def test_no_byte_of_an_output_changes_unseen_but_within_a_number(tmp_path: Path, data: st.DataObject) -> None:
    """A reward that is edited contradicts the others; lengths and indices are not computed again."""
    path = tmp_path / "out"
    path.unlink(missing_ok=True)
    record = {"id": "a", "problem": "p", "steps": ["1", "2"], "label": -1}
    run(path, as_input([record]))
    text = path.read_bytes()
    start, end = text.index(b"\n") + 1, text.index(b',"num_tokens"')
    at = data.draw(st.integers(start, end - 1))
    other = data.draw(st.integers(32, 126).filter(lambda byte: byte != text[at]))
    path.write_bytes(text[:at] + bytes([other]) + text[at + 1 :])
    if not text[at : at + 1].isdigit():
        refused(path, as_input([record]), "cannot resume")


def test_an_edit_that_agrees_with_itself_is_noticed_where_the_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "out"
    record = {"problem": "p", "steps": ["1"]}
    run(path, as_input([record] * 3), limit=2)
    edited(path, 1, step_rewards=[0.5], cumulative_rewards=[0.5], outcome_reward=0.5)
    refused(path, as_input([record] * 3), "a number in its first 2 lines was edited")


def test_an_edit_is_noticed_in_the_part_that_an_interrupted_run_left(tmp_path: Path) -> None:
    path = tmp_path / "out"
    data = as_input([{"problem": "p", "steps": [str(index)]} for index in range(9)])

    class Stopping(FakeScorer):
        def stream(self, items: Any, *pace: Any) -> Any:
            for count, outcome in enumerate(super().stream(items, *pace)):
                if count == 5:
                    raise KeyboardInterrupt
                yield outcome

    with pytest.raises(KeyboardInterrupt):
        run_to_file(Stopping(), io.BytesIO(data), path, Tally())
    run_to_file(FakeScorer(), io.BytesIO(data), path, Tally(), JobOptions(limit=7))
    edited(path, 2, num_tokens=7)
    refused(path, data, "a number in its first 7 lines was edited")


# Starting anew


def test_overwrite_scores_everything_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS), limit=3)
    changed = as_input([RECORDS[0] | {"problem": "P"}])
    assert run(path, changed, overwrite=True, tokens=False).resumed == 0
    assert [answer["problem"] for answer in answers(path.read_bytes())] == ["P"]
    assert run(path, changed).resumed == 1


def test_overwrite_replaces_the_output_of_other_options(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path, as_input(RECORDS))
    beta = FakeScorer(beta=0.05)
    run_to_file(beta, io.BytesIO(as_input(RECORDS)), path, Tally(), JobOptions(overwrite=True))
    assert header_of(path.read_bytes()).beta == 0.05

"""Rows of Arrow tables: records by all their names, rewards in their columns, an error for each bad row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore import Scorer
from stepscore.errors import InputError, InvalidRecord, NonFinite, PairIncompatible, SourceError
from stepscore.records import Reading, Record, TokenRecord
from stepscore.results import Result

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'stepscore[data]'")

from stepscore.integrations.arrow_tables import (  # noqa: E402
    METADATA_KEY,
    REWARD_COLUMNS,
    TableScorer,
    checked_ids,
    problem_keys,
    records_of,
    together,
    with_outcomes,
)

STEPS = ["3 * 4 = 12.", "So 12."]
TEXTS = Record("Ann has 3 bags of 4 pens. How many?", tuple(STEPS))


@pytest.fixture(scope="module")
def scorer(tiny_pair: Path) -> Iterator[TableScorer]:
    scorer = TableScorer(tiny_pair, id_column="id", threads=1)
    yield scorer
    scorer.scorer.close()


def one(**row: Any) -> Any:
    (item,) = records_of(pa.Table.from_pylist([row]))
    return item


# Rows -> records


@pytest.mark.parametrize(
    "row",
    [
        {"problem": TEXTS.problem, "steps": STEPS},
        {"query": TEXTS.problem, "solution": STEPS, "answer": "12", "other": 1},
        {"problem": TEXTS.problem, "question": None, "steps": STEPS, "completions": None, "messages": None},
        {
            "messages": [
                {"role": "user", "content": TEXTS.problem, "tool_calls": None},
                {"role": "assistant", "content": "\n\n".join(STEPS), "tool_calls": None},
            ]
        },
    ],
)
def test_a_row_is_a_record_by_every_accepted_name_and_a_null_is_no_field(row: dict[str, Any]) -> None:
    assert one(**row) == TEXTS


def test_a_row_of_token_ids_is_a_record_of_them_beside_null_texts() -> None:
    found = one(prompt_token_ids=[1, 2], response_token_ids=[3], step_ends=None, problem=None, steps=None)
    assert found == TokenRecord((1, 2), (3,))


def test_fields_are_named_and_one_text_split_by_a_reading() -> None:
    table = pa.table({"q": [TEXTS.problem], "out": ["\n\n".join(STEPS)]})
    assert records_of(table, Reading("q", "out", split=True)) == [TEXTS]


def test_a_row_without_a_problem_names_the_columns_that_it_has() -> None:
    found = one(text="a", steps=STEPS)
    assert isinstance(found, InvalidRecord)
    assert "'text'" in found.message


def test_text_that_is_not_utf8_is_the_error_of_its_row() -> None:
    problems = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    good, bad = records_of(pa.table({"problem": problems, "steps": [STEPS, STEPS]}))
    assert good == Record("a", tuple(STEPS))
    assert "`problem` is not UTF-8" in bad.message


# Problems together


@given(st.lists(st.integers(0, 4)))
def test_together_is_a_permutation_in_which_equal_keys_are_neighbours_in_their_order(keys: list[int]) -> None:
    order = together(keys)
    assert sorted(order) == list(range(len(keys)))
    runs = [keys[at] for index, at in enumerate(order) if not index or keys[order[index - 1]] != keys[at]]
    assert runs == list(dict.fromkeys(keys))
    assert all(here < after for here, after in pairwise(order) if keys[here] == keys[after])


def test_keys_are_of_the_problem_alone_and_rows_without_one_share_none() -> None:
    bad = InvalidRecord("bad")
    ids = TokenRecord((1, 2), (3,))
    keys = problem_keys([TEXTS, Record(TEXTS.problem, ("x",)), ids, TokenRecord((1, 2), (4,)), bad, bad])
    assert keys[0] == keys[1] == -2612301584657625668  # the same on every machine and in every version
    assert keys[2] == keys[3]
    assert len(set(keys)) == 4
    assert pa.array(keys, pa.int64()).null_count == 0


# Outcomes -> columns


def test_a_row_has_rewards_or_an_error_in_columns_of_fixed_types() -> None:
    result = Result(
        cumulative_rewards=[0.5, 0.25],
        step_rewards=[0.5, -0.25],
        outcome_reward=0.25,
        num_tokens=9,
        response_start=2,
        first_summed=1,
        step_ends=[3, 7],
    )
    table = pa.table({"id": [1, 2], "error": ["old", None], "x": ["a", "b"]})
    scored = with_outcomes(table, [result, NonFinite("not finite\n")])
    assert scored.schema.names == ["id", "x", *REWARD_COLUMNS.names]
    assert all(scored.schema.field(field.name) == field for field in REWARD_COLUMNS)
    good, bad = scored.to_pylist()
    assert good == {
        "id": 1,
        "x": "a",
        "cumulative_rewards": [0.5, 0.25],
        "step_rewards": [0.5, -0.25],
        "outcome_reward": 0.25,
        "error": None,
    }
    assert bad["error"] == {"code": "non_finite", "message": "not finite\\n"}
    assert bad["outcome_reward"] is bad["step_rewards"] is bad["cumulative_rewards"] is None


def test_an_empty_table_and_one_of_errors_only_have_the_same_types() -> None:
    none = with_outcomes(pa.table({"id": pa.array([], pa.int64())}), [])
    errors = with_outcomes(pa.table({"id": [1]}), [InvalidRecord("bad")])
    assert none.schema == errors.schema


# Ids


def test_a_missing_or_null_id_is_an_error_of_the_input() -> None:
    with pytest.raises(SourceError, match="there is no column `id` of ids; the columns are problem"):
        checked_ids(pa.table({"problem": ["a"]}), "id")
    with pytest.raises(SourceError, match="1 of 2 rows have no `id`"):
        checked_ids(pa.table({"id": [1, None]}), "id")


# Scoring


def test_a_table_is_scored_in_its_order_with_errors_in_place(scorer: TableScorer) -> None:
    rows = [
        {"id": 0, "problem": "p", "steps": STEPS},
        {"id": 1, "problem": TEXTS.problem, "steps": STEPS},
        {"id": 1, "problem": TEXTS.problem, "steps": STEPS},
        {"id": 3, "problem": "p", "steps": []},
        {"id": 4, "prompt_token_ids": [5, 6], "response_token_ids": [7, 8], "step_ends": [0, 1]},
        {"id": 5, "prompt_token_ids": [5, 6], "response_token_ids": [1 << 40]},
        {"id": 6, "problem": "p", "steps": ["So 12."]},
    ]
    names = {name: None for row in rows for name in row}
    found = scorer(pa.Table.from_pylist([names | row for row in rows])).to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    codes = [row["error"] and row["error"]["code"] for row in found]
    assert codes == [None, None, "duplicate_id", "no_steps", None, "invalid_record", None]
    texts = [Record("p", tuple(STEPS)), TEXTS, Record("p", ("So 12.",))]
    expected = scorer.scorer.score(texts)
    for at, result in zip((0, 1, 6), expected, strict=True):
        assert found[at]["cumulative_rewards"] == pytest.approx(result.cumulative_rewards, rel=1e-6, abs=1e-7)
        assert found[at]["step_rewards"] == pytest.approx(result.step_rewards, rel=1e-6, abs=1e-7)
    (ids,) = scorer.scorer.score_ids(
        [{"prompt_token_ids": [5, 6], "response_token_ids": [7, 8], "step_ends": [0, 1]}]
    )
    assert found[4]["step_rewards"] == pytest.approx(ids.step_rewards, rel=1e-6, abs=1e-7)


def test_provenance_is_in_the_metadata_and_what_was_there_stays(scorer: TableScorer) -> None:
    table = pa.table({"id": [0], "problem": ["p"], "steps": [STEPS]}).replace_schema_metadata({"mine": "1"})
    metadata = scorer(table).schema.metadata
    assert metadata[b"mine"] == b"1"
    told = msgspec.json.decode(metadata[METADATA_KEY])
    fingerprint = scorer.scorer.fingerprint()
    assert (told["pair"], repr(told["beta"])) == (fingerprint["pair"], fingerprint["beta"])
    assert told["convention"] == fingerprint["convention"]
    assert {"version", "date", "schema_version"} <= told.keys()


def test_a_machine_with_another_pair_is_refused(tiny_pair: Path) -> None:
    with Scorer.load(tiny_pair) as scorer:
        expected = {**scorer.fingerprint(), "beta": "0.5"}
    with pytest.raises(PairIncompatible, match="on this machine has the fingerprint"):
        TableScorer(tiny_pair, fingerprint=expected)


def test_no_row_error_is_another_exception() -> None:
    rows = [{"problem": 3, "steps": STEPS}, {"problem": 4, "steps": [[1]]}, {"problem": None, "steps": None}]
    for row in rows:
        assert isinstance(one(**row), InputError)

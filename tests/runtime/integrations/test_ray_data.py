"""What is checked before Ray runs: the plan, the folders of an earlier run, and the keys of the shuffle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepscore.errors import NotScored, OutputExists, ResumeMismatch, SourceError
from stepscore.records import BY_ACCEPTED_NAMES

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'stepscore[data]'")

import pyarrow.parquet as pq  # noqa: E402

from stepscore.integrations.arrow_tables import METADATA_KEY  # noqa: E402
from stepscore.integrations.ray_checkpoint import Run, begins_with_read, write_scores  # noqa: E402
from stepscore.integrations.ray_data import PROBLEM_KEY, with_problem_keys  # noqa: E402

FINGERPRINT = {"pair": "abc", "beta": "0.001", "convention": "card"}


@dataclass
class Operator:
    input_dependencies: list[Any] = field(default_factory=list)


class Read(Operator):
    """Named like Ray's: by its name an operator is known."""


class ReadFiles(Operator):
    """Named like Ray's."""


class Context(dict[str, Any]):
    def set_config(self, key: str, value: Any) -> None:
        self[key] = value

    def get_config(self, key: str) -> Any:
        return self.get(key)


def dataset(operator: Operator | None = None, *, scored: bool = True) -> Any:
    """What `write_scores` looks at before it writes."""
    made = SimpleNamespace(context=Context(), _logical_plan=SimpleNamespace(dag=operator or Read()))
    if scored:
        Run("id", FINGERPRINT).note(made)
    return made


def write(path: Path, provenance: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    table = pa.table({"id": [1]})
    if provenance is not None:
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(provenance)})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("operator", "begins"),
    [
        (Operator([Operator([Read()])]), True),
        (Operator([ReadFiles([Operator()])]), True),
        (Operator([Operator()]), False),
        (Operator([Read(), Operator()]), False),
    ],
)
def test_a_plan_begins_with_a_read_where_every_path_does(operator: Operator, begins: bool) -> None:
    assert begins_with_read(operator) is begins


def test_rows_in_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not begin with a read"):
        write_scores(dataset(Operator([Operator()])), str(tmp_path / "scored"))


def test_a_dataset_that_was_not_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotScored, match="score_dataset"):
        write_scores(dataset(scored=False), str(tmp_path / "scored"))


def test_an_output_without_its_ids_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "scored" / "a_000000-0.parquet")
    with pytest.raises(OutputExists, match=r"has 1 Parquet files, but .*scored\.checkpoint has no ids"):
        write_scores(dataset(), str(tmp_path / "scored"))


def test_ids_without_their_output_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "scored.checkpoint" / "a_000000.parquet")
    write(tmp_path / "scored.checkpoint" / "a_000001.pending.parquet")
    with pytest.raises(ResumeMismatch, match=r"the ids of 1 files that .* lacks, such as a_000000"):
        write_scores(dataset(), str(tmp_path / "scored"))


@pytest.mark.parametrize(
    "provenance",
    [None, {"pair": "abc", "beta": 0.5, "convention": "card"}, {"pair": 7}],
    ids=["none", "another beta", "damaged"],
)
def test_an_output_of_another_fingerprint_is_refused(tmp_path: Path, provenance: dict[str, Any]) -> None:
    write(tmp_path / "scored" / "a_000000-0.parquet", provenance)
    write(tmp_path / "ids" / "a_000000.parquet")
    with pytest.raises(ResumeMismatch, match="has rewards of"):
        write_scores(dataset(), str(tmp_path / "scored"), checkpoint=str(tmp_path / "ids"))


def test_rows_of_one_problem_have_one_key_and_keep_their_columns() -> None:
    table = pa.table({"id": [1, 2, 3], "problem": ["a", "b", "a"], "steps": [["x"], ["y"], ["z"]]})
    keyed = with_problem_keys(table, "id", BY_ACCEPTED_NAMES)
    first, second, third = keyed[PROBLEM_KEY].to_pylist()
    assert first == third != second
    assert keyed.drop_columns([PROBLEM_KEY]).equals(table)
    assert keyed.schema.field(PROBLEM_KEY).type == pa.int64()

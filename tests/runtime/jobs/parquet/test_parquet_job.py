"""A job into Parquet is there as a whole or not at all, is resumed, and is never taken for another's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from testing.fake_scorer import FakeScorer
from testing.outputs import stop_clock
from testing.uninstalled import uninstall

from stepscore.cli.main import main
from stepscore.errors import ExtraMissing
from stepscore.jobs.job import Tally
from stepscore.jobs.parquet.job import journal_path, run_to_parquet
from stepscore.scorer import Scorer

LINES = [
    {
        "id": f"gsm8k-{at}",
        "problem": f"p{at // 2}",
        "steps": [str(at), "Done."],
        "label": at % 3 - 1,
        "n": {"at": at},
    }
    for at in range(9)
]
SOURCE = "".join(json.dumps(line) + "\n" for line in LINES)
OUT = "out.parquet"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    stop_clock(monkeypatch)
    Path("in.jsonl").write_text(SOURCE)


def invoke(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert "error: unexpected" not in done.stderr
    return done


def score(*options: str, source: str = "in.jsonl", out: str = OUT) -> Result:
    return invoke("score", "pair", source, "-o", out, *options)


def names() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"in.jsonl"}


def test_a_job_writes_columns_and_leaves_nothing_else() -> None:
    assert score().exit_code == 0
    assert names() == {OUT}
    rows = pq.read_table(OUT).to_pylist()
    assert [{name: row[name] for name in LINES[0]} for row in rows] == LINES
    score(out="out.jsonl")
    header, *lines = Path("out.jsonl").read_text().splitlines()
    assert pq.read_schema(OUT).metadata[b"stepscore"].decode() == header + "\n"
    assert [row["step_rewards"] for row in rows] == [json.loads(line)["step_rewards"] for line in lines]


def test_every_command_reads_it_as_it_reads_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").mkdir()
    Path("b").mkdir()
    for folder, name in (("a", "scored.jsonl"), ("b", "scored.parquet")):
        assert score(out=f"{folder}/{name}").exit_code == 0
    Path("b/scored.parquet").rename("b/scored.jsonl")  # found by content
    commands = (
        ["select", "scored.jsonl"],
        ["evaluate", "processbench", "scored.jsonl", "--json"],
        ["report", "scored.jsonl"],
    )
    outputs = []
    for folder in ("a", "b"):
        monkeypatch.chdir(folder)
        outputs.append([json_lines(invoke(*command)) for command in commands])
        monkeypatch.chdir("..")
    assert outputs[0] == outputs[1]


def json_lines(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    try:
        return [json.loads(line) for line in done.stdout.splitlines()]
    except ValueError:
        return done.stdout


def test_a_second_run_says_complete_and_compares_the_input() -> None:
    Path("in.jsonl").write_text(SOURCE + "{\n" + json.dumps(LINES[0] | {"id": "x", "steps": []}) + "\n")
    assert score().exit_code == 1
    before = Path(OUT).read_bytes()
    again = score()
    assert again.exit_code == 1
    assert "out.parquet is already complete: 11 records, 2 of them with errors" in again.stderr
    assert Path(OUT).read_bytes() == before
    assert names() == {OUT}


def test_a_record_that_was_mended_is_noticed() -> None:
    """An error line holds no text of its record, so it is scored again."""
    bad = json.dumps(LINES[0] | {"id": "x", "steps": []}) + "\n"
    Path("in.jsonl").write_text(SOURCE + bad)
    assert score().exit_code == 1
    Path("in.jsonl").write_text(SOURCE + bad.replace('"steps": []', '"steps": ["s"]'))
    done = score()
    assert (done.exit_code, "its row 10 does not answer line 10" in done.stderr) == (4, True), done.stderr


CHANGES = {
    "a label": (SOURCE.replace('"label": 1', '"label": 0', 1), "a field of the input has been changed"),
    "an id": (SOURCE.replace("gsm8k-3", "gsm8k-33"), "its row 4 does not answer line 4"),
    "a line that is no record": (
        SOURCE.replace('{"id": "gsm8k-3"', '["id": "gsm8k-3"'),
        "its row 4 does not",
    ),
    "lines less": (SOURCE[: SOURCE.rindex('{"id"')], "more rows than this input, of which it answers 8"),
    "lines more": (SOURCE + json.dumps(LINES[0] | {"id": "x"}) + "\n", "finished with 9 rows"),
}


@pytest.mark.parametrize(("source", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_another_input_exits_4_and_overwrite_starts_anew(source: str, message: str) -> None:
    score()
    before = Path(OUT).read_bytes()
    Path("in.jsonl").write_text(source)
    done = score()
    assert (done.exit_code, message in done.stderr) == (4, True), done.stderr
    assert Path(OUT).read_bytes() == before
    assert score("--overwrite").exit_code in {0, 1}
    assert score().exit_code in {0, 1}
    assert names() == {OUT}


@pytest.mark.parametrize("options", [["--beta", "0.5"], ["--tokens"], ["--convention", "exact"]])
def test_another_job_exits_4(options: list[str]) -> None:
    score()
    done = score(*options)
    assert done.exit_code == 4
    assert f"{options[0].removeprefix('--')} was" in done.stderr


def test_an_interrupted_run_keeps_its_lines_and_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    score(out="whole.parquet")

    class Stopping(FakeScorer):
        def stream(self, items: Any, *pace: Any) -> Any:
            for count, outcome in enumerate(super().stream(items, *pace)):
                if count == 5:
                    raise KeyboardInterrupt
                yield outcome

    monkeypatch.setattr(Scorer, "load", lambda *_, **__: Stopping(pair="pair"))
    assert score().exit_code == 130
    journal = journal_path(Path(OUT)).name
    assert {journal, f"{journal}.fingerprint.json"} < names()
    assert not Path(OUT).exists()
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    done = score()
    assert "5 of the records by an earlier run" in done.stderr
    assert pq.read_table(OUT).equals(pq.read_table("whole.parquet"))
    assert names() == {OUT, "whole.parquet"}


def test_a_file_of_somebody_else_is_never_replaced() -> None:
    table = pq.read_table
    pq.write_table(table_of_somebody(), OUT)
    before = Path(OUT).read_bytes()
    for options in ([], ["--overwrite"]):
        done = score(*options)
        assert (done.exit_code, "was not written by stepscore" in done.stderr) == (3, True), done.stderr
    assert Path(OUT).read_bytes() == before
    assert table(OUT).num_rows == 1
    assert names() == {OUT}


def table_of_somebody() -> Any:
    import pyarrow as pa

    return pa.table({"problem": ["p"], "steps": [["s"]]})


def test_shards_merge_into_the_table_of_one_run() -> None:
    shards = ["1.jsonl", "2.jsonl"]
    for at, shard in enumerate(shards, 1):
        score("--shard", f"{at}/2", out=shard)
    assert score(out="whole.parquet").exit_code == 0
    assert invoke("merge", "in.jsonl", *shards, "-o", OUT).exit_code == 0
    assert pq.read_table(OUT).equals(pq.read_table("whole.parquet"))
    assert "is already complete" in score().stderr
    assert not {OUT + ".jsonl", OUT + ".jsonl.fingerprint.json"} & names()
    again = invoke("merge", "in.jsonl", *shards, "-o", OUT)
    assert (again.exit_code, "already exists" in again.stderr) == (3, True)
    assert invoke("merge", "in.jsonl", *shards, "-o", OUT, "--overwrite").exit_code == 0
    Path("mine.parquet").write_bytes(b"PAR1")
    assert invoke("merge", "in.jsonl", *shards, "-o", "mine.parquet", "--overwrite").exit_code == 3
    assert Path("mine.parquet").read_bytes() == b"PAR1"


def test_a_shard_that_is_no_text_is_named() -> None:
    score("--shard", "1/1", out="shard.parquet")
    done = invoke("merge", "in.jsonl", "shard.parquet", "-o", OUT)
    assert (done.exit_code, names()) == (4, {"shard.parquet"})
    assert "it is a table or compressed, and lines are compared" in done.stderr


def test_the_output_is_not_the_input() -> None:
    score()
    done = score("--overwrite", source=OUT)
    assert done.exit_code == 3
    assert "the output is the input file" in done.stderr


def test_a_scored_table_is_scored_again() -> None:
    score()
    assert score(source=OUT, out="again.parquet").exit_code == 0
    assert pq.read_table("again.parquet")["step_rewards"].equals(pq.read_table(OUT)["step_rewards"])


def test_without_pyarrow_the_extra_is_named_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninstall(
        monkeypatch,
        "pyarrow",
        *("stepscore.jobs.parquet.finished", "stepscore.jobs.parquet.writing"),
        *("stepscore.jobs.inputs.row_lines", "stepscore.jobs.inputs.json_types"),
    )
    with pytest.raises(ExtraMissing):
        run_to_parquet(FakeScorer(), io.BytesIO(SOURCE.encode()), Path(OUT), Tally())
    assert names() == set()

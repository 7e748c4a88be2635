"""Shards hold whole problems, and their outputs merge to the bytes of one run."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.hypothesis_profiles import examples
from testing.outputs import answers, header_of, lines_of, stop_clock

from stepscore.cli.main import main
from stepscore.errors import InputError
from stepscore.jobs.job import JobOptions, Tally, run_to_file
from stepscore.jobs.seal import fingerprint_path
from stepscore.jobs.shards import Shard, shard_index
from stepscore.jobs.source import parsed_lines
from stepscore.records import Reading, Record, TokenRecord
from stepscore.scorer import Scorer

ONE_FOLDER = settings(examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
COUNT = 3
MIXED = [
    *(json.dumps({"problem": f"p{at % 7}", "steps": [str(at)], "n": at}) for at in range(30)),
    *("{", "null", json.dumps({"id": 3, "problem": "p", "steps": ["s"]})),  # the last one is a duplicate
    *(json.dumps({"id": f"x{at}", "problem": "nan", "steps": [str(at)]}) for at in range(3)),
    json.dumps({"id": "long", "problem": "p" * 5000, "steps": ["s"]}),
    "",
]


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    stop_clock(monkeypatch)


def as_input(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def run(path: Path, data: bytes, shard: Shard | None = None, **options: Any) -> Path:
    scorer = FakeScorer(beta=options.pop("beta", 0.001), tokens=options.get("tokens", False))
    run_to_file(scorer, io.BytesIO(data), path, Tally(), JobOptions(shard=shard, **options))
    return path


def shards(folder: Path, data: bytes, count: int, **options: Any) -> list[Path]:
    return [
        run(folder / f"{index}-of-{count}.jsonl", data, Shard(index, count), **options)
        for index in range(1, count + 1)
    ]


def merge(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


# Which shard


@given(
    problem=st.text(),
    steps=st.lists(st.lists(st.text(max_size=3), max_size=3), min_size=2, max_size=3),
    count=st.integers(1, 99),
)
def test_samples_of_a_problem_are_in_one_shard(problem: str, steps: list[list[str]], count: int) -> None:
    spaced = f"  {problem} \n"
    texts = (problem, spaced)
    found = {shard_index(Record(text, tuple(each)), b"", count) for text in texts for each in steps}
    assert len(found) == 1
    assert 1 <= found.pop() <= count


@given(
    ids=st.lists(st.integers(), min_size=1, max_size=4),
    responses=st.lists(st.lists(st.integers(), max_size=3), min_size=2, max_size=3),
)
def test_responses_to_a_prompt_of_token_ids_are_in_one_shard(
    ids: list[int], responses: list[list[int]]
) -> None:
    found = {shard_index(TokenRecord(tuple(ids), tuple(each)), b"", 9) for each in responses}
    assert len(found) == 1


def test_the_shard_of_a_problem_is_the_same_everywhere() -> None:
    """Files that others keep depend on it: these numbers may not change."""
    assert [shard_index(Record(f"p{at}", ()), b"", 8) for at in range(6)] == STABLE
    assert shard_index(TokenRecord((1, 2), (3,)), b"", 8) == 2
    assert shard_index(InputError(""), b" {\n", 8) == shard_index(InputError(""), b"{", 8) == 2


STABLE = [1, 8, 5, 7, 6, 4]


def test_every_line_is_in_one_shard_with_the_index_and_error_that_it_has_in_the_whole() -> None:
    data = as_input(MIXED)
    whole = list(parsed_lines(io.BytesIO(data)))
    parts = [list(parsed_lines(io.BytesIO(data), shard=Shard(at, COUNT))) for at in range(1, COUNT + 1)]
    merged = sorted((line for part in parts for line in part), key=lambda line: line.index)
    assert [(one.index, one.id, str(one.record)) for one in merged] == [
        (one.index, one.id, str(one.record)) for one in whole
    ]
    assert all(parts)


def test_shards_do_not_depend_on_the_order_of_the_lines() -> None:
    lines = MIXED[:30]
    shuffled = random.Random(0).sample(lines, len(lines))
    for index in range(1, COUNT + 1):
        one, other = (
            {
                bytes(line.passthrough["n"])
                for line in parsed_lines(io.BytesIO(data), shard=Shard(index, COUNT))
            }
            for data in (as_input(lines), as_input(shuffled))
        )
        assert one == other


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "1/3/3", "a/b", "-1/3", "1/3 ", "", "²/3"])
def test_a_shard_that_is_none_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "in").write_bytes(as_input(MIXED))
    done = CliRunner().invoke(main, ["score", "pair", str(tmp_path / "in"), "--shard", text])
    assert done.exit_code == 2
    assert "use I/N with I from 1 to N" in done.stderr


# Merge


@ONE_FOLDER
@given(lines=st.lists(st.sampled_from(MIXED), max_size=30), count=st.integers(1, 5))
def test_shards_merge_to_the_bytes_of_one_run(tmp_path: Path, lines: list[str], count: int) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    data = as_input([MIXED[0], *lines])
    (tmp_path / "in").write_bytes(data)
    whole = run(tmp_path / "run" / "whole", data)
    parts = shards(tmp_path / "run", data, count)
    done = merge(tmp_path / "in", *random.Random(0).sample(parts, count), "-o", tmp_path / "run" / "out")
    assert (tmp_path / "run" / "out").read_bytes() == whole.read_bytes(), done.output
    assert fingerprint_path(tmp_path / "run" / "out").read_bytes() == fingerprint_path(whole).read_bytes()
    assert done.exit_code == (1 if any("error" in answer for answer in answers(whole.read_bytes())) else 0)


def test_the_input_of_a_merge_may_come_from_a_pipe(tmp_path: Path) -> None:
    data = as_input(MIXED)
    parts = shards(tmp_path, data, COUNT)
    done = CliRunner().invoke(
        main, ["merge", "-", *map(str, parts), "-o", str(tmp_path / "merged.jsonl")], input=data
    )
    assert done.exit_code == 1, done.stderr
    assert (tmp_path / "merged.jsonl").read_bytes() == run(tmp_path / "whole.jsonl", data).read_bytes()


def test_records_that_were_read_by_a_field_merge_without_naming_it(tmp_path: Path) -> None:
    options = {"reading": Reading("task", "out", split=True), "tokens": True}
    lines = [json.dumps({"task": f"p{at}", "out": f"{at}\n\nDone."}) for at in range(9)]
    (tmp_path / "in").write_bytes(as_input(lines))
    whole = run(tmp_path / "whole", as_input(lines), **options)
    parts = shards(tmp_path, as_input(lines), 2, **options)
    assert merge(tmp_path / "in", *parts, "-o", tmp_path / "out", "--quiet").output == ""
    assert (tmp_path / "out").read_bytes() == whole.read_bytes()
    grown = as_input([*lines, json.dumps({"task": "q", "out": "1"})])
    assert answers(run(tmp_path / "out", grown, **options).read_bytes())[-1]["problem"] == "q"


def test_a_merged_output_has_the_date_of_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dates = iter(["2026-12-03T00:00:00.000Z", "2026-12-01T00:00:00.000Z", "2026-12-02T00:00:00.000Z"])
    monkeypatch.setattr("stepscore.jobs.provenance.utc_now", lambda: next(dates))
    (tmp_path / "in").write_bytes(as_input(MIXED))
    merge(tmp_path / "in", *shards(tmp_path, as_input(MIXED), 3), "-o", tmp_path / "out")
    assert header_of((tmp_path / "out").read_bytes()).date == "2026-12-01T00:00:00.000Z"


Spoil = Callable[[list[Path]], list[Path]]


def _cut(part: Path, end: int) -> None:
    part.write_bytes(part.read_bytes()[:end])


def _edited(parts: list[Path]) -> list[Path]:
    text = parts[0].read_bytes()
    at = text.index(b'"num_tokens":') + len(b'"num_tokens":')
    parts[0].write_bytes(text[:at] + b"9" + text[at + 1 :])
    return parts


def _torn(parts: list[Path]) -> list[Path]:
    _cut(parts[1], -5)
    return parts


def _unfinished(parts: list[Path]) -> list[Path]:
    for part in parts[:2]:
        header, *lines = part.read_bytes().splitlines(keepends=True)
        part.write_bytes(header + b"".join(lines[:-1]))
    return parts


def _other_beta(parts: list[Path]) -> list[Path]:
    parts[2].unlink()
    return [*parts[:2], run(parts[2], as_input(MIXED), Shard(3, 3), beta=0.05)]


def _other_input(parts: list[Path]) -> list[Path]:
    parts[2].unlink()
    return [*parts[:2], run(parts[2], as_input(MIXED).replace(b'"n": 2', b'"n": 9'), Shard(3, 3))]


def _other_count(parts: list[Path]) -> list[Path]:
    return [*parts[:2], run(parts[2].with_name("3-of-4"), as_input(MIXED), Shard(3, 4))]


def _whole_run(parts: list[Path]) -> list[Path]:
    return [*parts[:2], run(parts[2].with_name("whole"), as_input(MIXED))]


def _without_header(parts: list[Path]) -> list[Path]:
    parts[0].write_bytes(b"".join(lines_of(parts[0].read_bytes())))
    return parts


def _longer(parts: list[Path]) -> list[Path]:
    parts[0].write_bytes(parts[0].read_bytes() + lines_of(parts[0].read_bytes())[0])
    return parts


SPOILED: dict[str, tuple[Spoil, list[str]]] = {
    "missing": (lambda parts: parts[:1], ["of 3 shards 2 are missing: 2/3, 3/3"]),
    "twice": (lambda parts: [*parts, parts[0]], ["1-of-3.jsonl and ", "are both shard 1/3"]),
    "torn": (_torn, ["2-of-3.jsonl: its last line is torn: its run has not finished"]),
    "unfinished": (
        _unfinished,
        ["1-of-3.jsonl: it ends before line", "; ", "2-of-3.jsonl: it ends before line"],
    ),
    "another beta": (_other_beta, ["3-of-3.jsonl: beta is 0.05, that of", "is 0.001"]),
    "another input": (_other_input, ["3-of-3.jsonl: its line ", "does not answer line", "`n` was 9"]),
    "another count": (_other_count, ["3-of-4 is shard 3/4", "1-of-3.jsonl is shard 1/3"]),
    "no shard": (_whole_run, ["whole: it was not written by `stepscore score --shard`"]),
    "no header": (_without_header, ["1-of-3.jsonl: it has no header"]),
    "edited": (_edited, ["1-of-3.jsonl: a number in its first", "lines was edited"]),
    "longer": (_longer, ["1-of-3.jsonl: it has more lines than its part of the input"]),
}


@pytest.mark.parametrize(("spoil", "messages"), SPOILED.values(), ids=SPOILED.keys())
def test_shards_that_are_not_one_run_are_named_and_nothing_is_written(
    tmp_path: Path, spoil: Spoil, messages: list[str]
) -> None:
    (tmp_path / "in").write_bytes(as_input(MIXED))
    done = merge(tmp_path / "in", *spoil(shards(tmp_path, as_input(MIXED), 3)), "-o", tmp_path / "out")
    assert done.exit_code == 4
    for message in messages:
        assert message in done.stderr
    assert "hint: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_only_an_output_is_replaced_and_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(as_input(MIXED))
    parts = shards(tmp_path, as_input(MIXED), 2)
    foreign = tmp_path / "foreign"
    foreign.write_text("precious\n")
    before = foreign.read_bytes(), parts[0].read_bytes()
    for path in (foreign, tmp_path / "in", parts[0]):
        assert merge(tmp_path / "in", *parts, "-o", path).exit_code == 3
        assert merge(tmp_path / "in", *parts, "-o", path, "--overwrite").exit_code == 3
    assert (foreign.read_bytes(), parts[0].read_bytes()) == before
    out = run(tmp_path / "out", as_input(MIXED[:3]))
    assert merge(tmp_path / "in", *parts, "-o", out).exit_code == 3
    assert merge(tmp_path / "in", *parts, "-o", out, "--overwrite").exit_code == 1
    assert len(answers(out.read_bytes())) == len(MIXED) - 1

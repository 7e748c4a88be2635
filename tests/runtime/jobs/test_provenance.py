"""Provenance travels in the output: it is moved, piped, concatenated and read again, and nothing is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.outputs import THEN, answers, header_of, lines_of, stop_clock

from stepscore.cli.main import main
from stepscore.enums import Convention
from stepscore.errors import HeaderInvalid, NotComparable, OutputExists, ResumeMismatch
from stepscore.jobs.job import JobOptions, Tally, run_to_file
from stepscore.jobs.provenance import HeaderLine, Provenance, ScoringOptions, combined, is_header, read_header
from stepscore.jobs.seal import fingerprint_path
from stepscore.jobs.shards import Shard
from stepscore.records import Reading
from stepscore.scorer import Scorer

LINES = [
    {"id": index, "problem": f"p{index // 2}", "steps": [str(index)], "label": -1, "answer": str(index % 2)}
    for index in range(6)
]
INPUT = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    stop_clock(monkeypatch)


def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), input=stdin)


def score(*options: object) -> bytes:
    """What `score` prints."""
    done = invoke("score", "pair", "-", *options, stdin=INPUT)
    assert done.exit_code == 0, done.output
    return done.stdout_bytes


def run(path: Path, data: bytes = INPUT, **options: Any) -> Tally:
    tally = Tally()
    run_to_file(FakeScorer(pair="pair"), io.BytesIO(data), path, tally, JobOptions(**options))
    return tally


# The header


def test_an_output_names_pair_scale_options_version_and_date() -> None:
    found = header_of(score("--beta", "0.05", "--tokens", "--steps-field", "steps", "--shard", "1/1"))
    assert (found.schema_version, found.pair, found.beta, found.convention) == (1, "pair", 0.05, "card")
    assert (found.version, found.date) == (header_of(score()).version, THEN)
    assert found.options == ScoringOptions(tokens=True, steps_field="steps", shard=Shard(1, 1))


def test_a_file_and_a_stream_hold_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == score()


@given(
    pair=st.text(),
    beta=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    tokens=st.booleans(),
    convention=st.sampled_from(Convention),
    reading=st.builds(Reading, st.none() | st.text(), split=st.booleans()),
)
def test_a_header_is_read_as_it_was_written(
    pair: str, beta: float, tokens: bool, convention: Convention, reading: Reading
) -> None:
    given = Provenance(
        pair=pair, beta=beta, convention=convention, options=ScoringOptions.of(tokens=tokens, reading=reading)
    )
    line = HeaderLine(given).encode()
    assert is_header(line)
    assert read_header(line) == given
    assert read_header(json.dumps(json.loads(line), indent=1).encode()) == given


@given(st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=3))
def test_no_line_of_a_record_is_a_header(fields: dict[str, Any]) -> None:
    record = {"stepscore": {"schema_version": 1}, **fields, "problem": "p"}
    assert not is_header(json.dumps(record).encode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"schema_version": 2}, "schema version 2, expected 1"), ({"schema_version": 1, "beta": -1}, "beta")],
)
def test_a_header_that_cannot_be_understood_is_an_error(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = tmp_path / "s"
    path.write_bytes(json.dumps({"stepscore": fields}).encode() + b"\n" + b"".join(lines_of(score())))
    for command in (["select"], ["report"], ["evaluate", "processbench"]):
        done = invoke(*command, path)
        assert done.exit_code == 3
        assert message in done.stderr
    with pytest.raises(HeaderInvalid, match=message):
        run(path)


# A scored file is scored again


def test_a_header_is_no_record_where_a_scored_file_is_the_input() -> None:
    scored = score()
    done = invoke("score", "pair", "-", stdin=scored + scored.replace(b'"id":', b'"old":'))
    assert [answer["id"] for answer in answers(done.stdout)] == [*range(6), *range(6, 12)]
    assert done.exit_code == 0


# Outputs that are moved


def test_an_output_that_was_moved_or_piped_is_continued(tmp_path: Path) -> None:
    run(tmp_path / "out", limit=4)
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "piped").write_bytes(score("--limit", "3"))
    assert run(tmp_path / "moved").resumed == 4
    assert run(tmp_path / "piped").resumed == 3
    assert (tmp_path / "moved").read_bytes() == (tmp_path / "piped").read_bytes() == score()


def test_the_date_of_an_output_is_that_of_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out", limit=4)
    monkeypatch.setattr("stepscore.jobs.provenance.utc_now", lambda: "2027-01-01T00:00:00.000Z")
    run(tmp_path / "out")
    assert header_of((tmp_path / "out").read_bytes()).date == THEN


def test_the_seal_of_another_output_is_none_of_a_file_that_was_moved_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "old", INPUT.replace(b'"p0"', b'"q0"'), limit=2)
    monkeypatch.setattr("stepscore.jobs.provenance.utc_now", lambda: "2027-01-01T00:00:00.000Z")
    run(tmp_path / "new", limit=4)
    (tmp_path / "new").replace(tmp_path / "old")
    assert run(tmp_path / "old").resumed == 4
    assert json.loads(fingerprint_path(tmp_path / "old").read_bytes())["lines"] == "6"


def test_a_header_that_is_torn_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for length in (1, 9, 40, len(score().partition(b"\n")[0])):
        path.write_bytes(score()[:length])
        assert run(path).resumed == 0
        assert path.read_bytes() == score()


def test_a_file_without_a_header_and_a_fingerprint_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run(path)
    path.write_bytes(b"".join(lines_of(path.read_bytes())))
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match=r"has no header, and .* is missing or invalid"):
            run(path, overwrite=overwrite)


# Outputs of before headers


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An output of four lines as it was before there were headers."""
    path = tmp_path / "old.jsonl"
    path.write_bytes(b"".join(lines_of(score("--limit", "4"))))
    fingerprint = {"pair": "pair", "beta": "0.001", "convention": "card", "tokens": "no"}
    fingerprint_path(path).write_text(json.dumps(fingerprint))
    return path


def test_an_output_of_before_headers_is_continued_by_its_fingerprint(old: Path) -> None:
    assert run(old).resumed == 4
    assert old.read_bytes() == b"".join(lines_of(score()))
    sealed = json.loads(fingerprint_path(old).read_bytes())
    assert (sealed["pair"], sealed["lines"]) == ("pair", "6")
    old.write_bytes(old.read_bytes().replace(b'"num_tokens":3', b'"num_tokens":4'))
    with pytest.raises(ResumeMismatch, match="a number in its first 6 lines was edited"):
        run(old)


def test_an_output_of_before_headers_of_another_job_is_refused(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(ResumeMismatch, match="split was not given, now yes"):
        run(old, reading=Reading(split=True))
    assert old.read_bytes() == before


def test_the_commands_that_follow_read_an_output_of_before_headers(old: Path) -> None:
    for command in (["select"], ["evaluate", "processbench", "--threshold", "0"]):
        found = json.loads(invoke(*command, old, "--json").stdout)["stepscore"]
        assert (found["pair"], found["beta"], found["version"]) == ("pair", 0.001, None)
    assert '"beta":"0.001"' in invoke("report", old).stdout


# Outputs that are derived


def test_a_selection_keeps_the_header_and_names_its_own_run(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(score())
    chosen = invoke("select", tmp_path / "s").stdout_bytes
    found = header_of(chosen)
    assert [(each.command, each.date) for each in found.derived] == [("select", THEN)]
    assert found == header_of(score()).derived_by(found.derived[0].command)
    as_json = json.loads(invoke("select", tmp_path / "s", "--json").stdout)
    assert as_json["stepscore"] == json.loads(chosen.splitlines()[0])["stepscore"]
    again = invoke("select", "-", stdin=chosen).stdout_bytes
    assert [answer["id"] for answer in answers(again)] == [answer["id"] for answer in answers(chosen)]
    assert len(header_of(again).derived) == 2


def test_an_evaluation_names_the_run_that_it_evaluates(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(score())
    done = invoke(*("evaluate", "processbench", tmp_path / "s", "--threshold", "0", "--json", "-o", tmp_path))
    found = json.loads(done.stdout)
    assert (found["stepscore"]["pair"], found["beta"]) == ("pair", 0.001)
    assert [each["command"] for each in found["stepscore"]["derived"]] == ["evaluate"]
    written = header_of((tmp_path / "s_correct.jsonl").read_bytes())
    assert json.loads(HeaderLine(written).encode())["stepscore"] == found["stepscore"]


def test_a_selection_is_not_continued_or_written_over(tmp_path: Path) -> None:
    path = tmp_path / "chosen"
    path.write_bytes(invoke("select", "-", stdin=score()).stdout_bytes)
    for overwrite in (False, True):
        with pytest.raises(OutputExists):
            run(path, overwrite=overwrite)


# Outputs that are put together


def test_outputs_of_other_scales_are_not_read_as_one(tmp_path: Path) -> None:
    others = {"--beta=0.05": "different betas: 0.001 and 0.05", "--convention=exact": "different conventions"}
    for other, named in others.items():
        path = tmp_path / "both"
        path.write_bytes(score() + score(other))
        for command in (["select"], ["report"], ["evaluate", "processbench", "--threshold", "0"]):
            done = invoke(*command, path)
            assert (done.exit_code, done.stdout) == (3, "")
            assert f"{path}, line 1 and {path}, line 8 were scored with {named}" in done.stderr


def test_outputs_of_one_scale_are_read_as_one_in_any_order(tmp_path: Path) -> None:
    parts = [score("--shard", f"{index}/2") for index in (1, 2)]
    shuffled = b"".join(reversed((parts[0] + parts[1]).splitlines(keepends=True)))
    chosen = invoke("select", "-", stdin=shuffled).stdout_bytes
    assert len(lines_of(chosen)) == 3
    assert header_of(chosen).options is None
    assert header_of(chosen).pair == "pair"


def test_what_parts_agree_on_is_kept_and_the_date_is_the_earliest() -> None:
    one = Provenance(pair="p", beta=1.0, version="1", date="2026-12-02", options=ScoringOptions())
    other = Provenance(
        pair="p", beta=1.0, version="2", date="2026-12-01", options=ScoringOptions(tokens=True)
    )
    assert combined({"a": one, "b": other}) == Provenance(pair="p", beta=1.0, date="2026-12-01")
    assert combined({"a": Provenance(), "b": one}) == Provenance(pair="p", beta=1.0, date="2026-12-02")
    assert combined({}) is None
    with pytest.raises(NotComparable, match="a and b were scored with different pairs: p and q"):
        combined({"a": one, "b": Provenance(pair="q")})

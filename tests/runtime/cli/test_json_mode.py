"""--json: one object for every command, result or error, in one place and of one schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, header_of
from testing.scored_lines import scored, write

from stepscore.cli import results
from stepscore.cli.json_mode import asks_for_json
from stepscore.cli.main import main
from stepscore.cli.results import AnyResult, Failure, result_schemas
from stepscore.enums import Provider
from stepscore.errors import ProviderUnavailable
from stepscore.jobs.provenance import RESULT_VERSION
from stepscore.scorer import Scorer

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "machine-readable.md").read_text(encoding="utf-8")
GOOD = '{"id": "a", "problem": "p", "steps": ["1", "2"]}\n'


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)


def invoke(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--json"], input=stdin)


def result_of(done: Result) -> Any:
    """The object on stdout, which is all of it, decoded by its schema."""
    (line,) = done.stdout.splitlines()
    return msgspec.json.decode(line, type=AnyResult)


def failure_of(done: Result) -> Failure:
    """The object that is the last line of stderr; stdout is empty."""
    assert done.stdout == ""
    return msgspec.json.decode(done.stderr.splitlines()[-1], type=Failure)


# Results


@pytest.mark.usefixtures("_no_model")
def test_score_into_a_file_prints_its_summary_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD + "{\n")
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "out")
    found = result_of(done)
    assert (done.exit_code, found.records, found.scored, found.errors) == (1, 2, 1, {"invalid_json": 1})
    assert found.stepscore == header_of((tmp_path / "out").read_bytes())
    again = result_of(invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "out"))
    assert (again.resumed, again.stepscore) == (2, found.stepscore)


@pytest.mark.usefixtures("_no_model")
def test_score_to_stdout_prints_its_summary_as_the_last_line_of_stderr() -> None:
    done = invoke("score", "pair", "-", stdin=GOOD)
    assert [answer["id"] for answer in answers(done.stdout)] == ["a"]
    found = msgspec.json.decode(done.stderr.splitlines()[-1], type=AnyResult)
    assert (found.output, found.records, found.stepscore) == ("-", 1, header_of(done.stdout))


def test_score_of_one_solution_has_the_fields_of_a_scored_line(tiny_pair: Path) -> None:
    found = result_of(invoke("score", tiny_pair, "--problem", "1+1?", "--step", "2", "--threshold", "9"))
    assert (found.problem, found.steps, found.marked_step) == ("1+1?", ["2"], 0)
    assert found.scored.step_rewards == [found.scored.outcome_reward]


def test_dry_run_has_the_same_counts_as_its_table(tiny_pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD + "{\n")
    found = result_of(invoke("score", tiny_pair, tmp_path / "in", "--dry-run", "--quiet"))
    assert (found.records, found.errors, found.windows) == (2, {"invalid_json": 1}, 1)
    memory = found.memory
    assert memory.total == memory.process + memory.weights + memory.batch + memory.window
    assert found.not_measured is None
    assert found.time.measured_tokens == found.tokens
    assert found.time.seconds > found.time.load_seconds > 0


def test_inspect_and_verify_name_the_pair(tiny_pair: Path) -> None:
    shown, verified = (result_of(invoke(each, tiny_pair)) for each in ("inspect", "verify"))
    assert shown.pair == verified.pair
    assert shown.manifest.encode() == (tiny_pair / "manifest.json").read_bytes()
    assert {each.residency for each in shown.memory} == {"resident", "alternate", "stream"}


def test_doctor_says_what_works_and_the_exit_code_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    assert result_of(invoke("doctor")).works

    def fail(provider: Provider) -> None:
        raise ProviderUnavailable("broken", hint="pip install something")

    monkeypatch.setattr("stepscore.engine.ort.provider_checks.require", fail)
    done = invoke("doctor")
    found = result_of(done)
    assert (done.exit_code, found.works) == (3, False)
    assert {(check.error.code, check.error.hint) for check in found.checks} == {
        ("provider_unavailable", "pip install something")
    }


@pytest.mark.usefixtures("_no_model")
def test_merge_and_report_say_what_they_wrote(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD + "{\n")
    for shard in ("1/2", "2/2"):
        invoke("score", "pair", tmp_path / "in", "--shard", shard, "-o", tmp_path / shard[0])
    out = tmp_path / "out.jsonl"
    merged = invoke("merge", tmp_path / "in", tmp_path / "1", tmp_path / "2", "-o", out)
    found = result_of(merged)
    assert (merged.exit_code, found.records, found.errors, found.shards) == (1, 2, 1, 2)
    page = result_of(invoke("report", out, "-o", tmp_path / "page.html"))
    assert (page.records, page.errors, page.output) == (2, 1, str(tmp_path / "page.html"))
    printed = invoke("report", out)
    assert printed.stdout.startswith("<!doctype html>")
    assert json.loads(printed.stderr.splitlines()[-1])["output"] == "-"


@pytest.mark.parametrize("command", [["select"], ["evaluate", "processbench"]], ids=" ".join)
def test_figures_of_scored_files_have_command_and_version(command: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", scored([0.1, -0.2], label=1, final_answer_correct=True))
    limit = ["--threshold", "0"] if command[0] == "evaluate" else []
    found = json.loads(invoke(*command, path, *limit).stdout)
    assert (found["command"], found["schema_version"]) == (" ".join(command), RESULT_VERSION)


def test_select_that_prints_records_prints_its_figures_as_the_last_line_of_stderr(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", scored([0.1], final_answer_correct=True))
    done = invoke("select", path, "-o", "-")
    assert len(answers(done.stdout)) == 1
    assert json.loads(done.stderr.splitlines()[-1])["command"] == "select"


def test_plot_names_the_files_that_it_wrote(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", *(scored([0.1], id=k, final_answer_correct=True) for k in range(2)))
    found = result_of(invoke("plot", "accuracy", path, "-o", tmp_path / "a.csv"))
    assert (found.kind, found.outputs, found.errors) == ("accuracy", [str(tmp_path / "a.csv")], 0)


# Errors


def test_an_error_is_an_object_with_the_same_exit_code() -> None:
    plain, done = CliRunner().invoke(main, ["verify", "no/such"]), invoke("verify", "no/such")
    found = failure_of(done)
    assert plain.exit_code == done.exit_code == 3
    assert plain.stderr == f"error: {found.error.message}\nhint: {found.error.hint}\n"
    assert (found.command, found.error.code) == ("verify", "not_found")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["verify"], "verify"),
        (["evaluate", "processbench", "no/such"], "evaluate processbench"),
        (["nothing"], None),
        (["score", "pair", "--nothing"], "score"),
        (["score", "pair"], "score"),
        (["help", "nothing"], "help"),
    ],
)
def test_a_usage_error_is_an_object_too(arguments: list[str], command: str | None) -> None:
    done = invoke(*arguments)
    found = failure_of(done)
    assert (done.exit_code, found.command, found.error.code) == (2, command, "usage")
    assert "--help" in (found.error.hint or "")


def test_an_error_of_a_subcommand_names_both_words(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    found = failure_of(invoke("evaluate", "processbench", tmp_path / "in"))
    assert (found.command, found.error.code) == ("evaluate processbench", "not_scored")


def test_an_interrupted_job_is_an_object_with_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Interrupting(FakeScorer):
        def stream(self, items: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "load", Interrupting.load)
    (tmp_path / "in").write_text(GOOD)
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "out")
    found = failure_of(done)
    assert (done.exit_code, found.error.code) == (130, "interrupted")
    assert "run the same command again to resume" in found.error.message


def test_an_error_that_nobody_expects_is_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pair: Path | None, *, as_json: bool) -> int:
        raise RuntimeError("no")

    monkeypatch.setattr("stepscore.cli.doctor.run_doctor", fail)
    found = failure_of(invoke("doctor"))
    assert (found.command, found.error.code) == ("doctor", "error")
    assert "unexpected RuntimeError" in found.error.message


def test_a_value_that_spells_json_asks_for_none_behind_the_end_of_options() -> None:
    assert not asks_for_json(["verify", "--", "--json"])
    assert asks_for_json(["bench", "PAIR", "--format", "json"])
    assert not asks_for_json(["export", "--format", "onnx"])


# Schema and page


def test_every_result_is_in_the_union_and_in_the_table_of_the_page() -> None:
    structs = [
        each
        for each in vars(results).values()
        if isinstance(each, type) and issubclass(each, results.CommandResult)
    ]
    tags = {each.__struct_config__.tag for each in structs if each is not results.CommandResult}
    mapping = result_schemas()["result"]["discriminator"]["mapping"]
    assert tags <= mapping.keys()
    _, *rows = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert set(rows) == mapping.keys() | {"parity"}  # whose object is the exporter's parity.json
    assert len(rows) == len(set(rows))


def test_every_command_has_the_option_json() -> None:
    def leaves(group: Any, context: Any) -> Any:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield from leaves(command, context) if hasattr(command, "commands") else [command]

    lacking = [
        command.name
        for command in leaves(main, main.make_context("stepscore", ["version"]))
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert lacking == []

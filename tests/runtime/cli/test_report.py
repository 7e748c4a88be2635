"""`stepscore report`: what it reads, what it refuses, and that no text of a record becomes markup."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from testing import scored_lines
from testing.fake_scorer import FakeScorer
from testing.outputs import lines_of
from testing.scored_records import scored

from stepscore.cli.main import main
from stepscore.enums import Method
from stepscore.errors import ExtraMissing, InputError, InvalidJson, InvalidRecord, NotScored
from stepscore.jobs.schema import LineError
from stepscore.jobs.seal import fingerprint_path
from stepscore.report.formulas import Formulas
from stepscore.report.page import Page, inert_json, render
from stepscore.report.solutions import ReportRecord, solutions
from stepscore.scorer import Scorer

text = st.text(st.characters(exclude_categories=["Cs"]))  # JSON that is UTF-8 holds no surrogates
NASTY = st.sampled_from(
    ["</script>", "<!--", "<script>", "]]>", "{{data}}", "{{script}}", "\\u003c", "\u2028"]
)


def lines(*records: dict[str, Any]) -> list[bytes]:
    return [json.dumps(record).encode() + b"\n" for record in records]


def solutions_of(given: list[bytes]) -> list[ReportRecord]:
    return solutions(given, Formulas())


def data_of(html: str) -> Any:
    """What the script of the page would read, as an HTML parser sees it."""
    blocks: list[str] = []

    class Parser(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("id", "data") in attrs

        def handle_data(self, data: str) -> None:
            blocks.extend([data] if self.inside else [])

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

    Parser().feed(html)
    return json.loads("".join(blocks))


@given(text, st.lists(text | NASTY, min_size=1, max_size=4), text | NASTY)
def test_any_text_comes_back_from_the_page_and_adds_no_tag(
    problem: str, steps: list[str], source: str
) -> None:
    page = Page(source, [ReportRecord(problem, problem=problem, steps=tuple(steps))])
    html, empty = render(page), render(Page("", []))
    (found,) = data_of(html)["records"]
    assert (found["id"], found.get("problem", ""), found["steps"]) == (problem, problem, steps)
    assert data_of(html)["source"] == source
    assert "<" not in inert_json(page)
    assert html.count("<") == empty.count("<")


def test_the_policy_allows_this_script_and_this_style_and_nothing_else() -> None:
    html = render(Page("a", []))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"(?:src|href)=", html.replace("-src", ""))


# What is read


def test_other_fields_are_shown_where_they_are_short() -> None:
    (found,) = solutions_of(lines(scored(generator="Qwen", final_answer="4", long="x" * 300, deep={"a": 1})))
    assert found.fields == {"generator": "Qwen", "final_answer": "4"}


def test_labels_and_correctness_are_taken_where_they_are_of_their_type() -> None:
    taken, left = solutions_of(
        lines(scored(label=-1, final_answer_correct=True), scored(label="none", final_answer_correct="no"))
    )
    assert (taken.label, taken.correct) == (-1, True)
    assert (left.label, left.correct) == (None, None)


def test_the_aliases_of_the_input_are_read_too() -> None:
    record = scored()
    record |= {"query": record.pop("problem"), "answer": record.pop("steps")}
    (found,) = solutions_of(lines(record))
    assert (found.problem, found.steps) == ("1 + 1?", ("1 + 1 = 2", "So 2."))


def test_an_error_record_keeps_its_code_and_message() -> None:
    _, found = solutions_of(lines(scored(), {"id": 7, "error": {"code": "too_long", "message": "m"}}))
    assert found == ReportRecord(7, LineError("too_long", "m"))


def test_tokens_are_cut_where_the_answer_starts_and_where_steps_end() -> None:
    texts = ["<u>", "1 + 1?", "<a>", "1", " + 1 = 2", "\n\n", "So 2.", "<e>"]
    logprobs = {"policy_logprobs": [-1.0] * 7, "reference_logprobs": [-1.5] * 7}
    (found,) = solutions_of(lines(scored(token_texts=texts, response_start=3, step_ends=[4, 6], **logprobs)))
    assert found.tokens is not None
    assert found.tokens.response_start == 3
    assert found.tokens.ends == [6, 8]
    assert found.tokens.log_ratios == [0.5] * 7


@pytest.mark.parametrize(
    ("line", "fault", "message"),
    [
        (b"{", InvalidJson, "not JSON: "),
        (b"[]", InvalidRecord, "Expected `object`, got `array`"),
        (b'{"id": 1, "problem": "p", "steps": ["s"]}', InvalidRecord, "`step_rewards`"),
        (json.dumps(scored(step_rewards=[0.1])).encode(), InvalidRecord, "2 steps, 1 step_rewards"),
        (
            json.dumps(scored(step_rewards=["a", "b"])).encode(),
            InvalidRecord,
            "not a line of `stepscore score`",
        ),
        (json.dumps(scored(steps="text")).encode(), InvalidRecord, "`steps` must be a list"),
        (
            json.dumps(scored(policy_logprobs=[1.0], reference_logprobs=[], token_texts=[])).encode(),
            InvalidRecord,
            "do not match",
        ),
        (b'{"id": 1, "error": "no"}', InvalidRecord, "not a line of `stepscore score`"),
    ],
)
def test_a_line_that_score_did_not_write_is_shown_as_an_error(
    line: bytes, fault: type[InputError], message: str
) -> None:
    good, bad = solutions_of([*lines(scored()), line])
    assert good.error is None
    assert bad.error is not None
    assert bad.error.code == fault.code
    assert message in bad.error.message
    assert bad.id in {1, "a"}  # its own, else its place in the file


@pytest.mark.parametrize(
    "given", [[], [b"{"], [b'{"id": 7, "error": {"code": "c", "message": "m"}}']], ids=str
)
def test_a_file_in_which_no_record_has_rewards_is_refused(given: list[bytes]) -> None:
    with pytest.raises(NotScored, match="no record has rewards"):
        solutions_of(given)


# The command


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def scored_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `score --tokens` writes."""
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    source = tmp_path / "in.jsonl"
    source.write_text('{"problem": "1 + 1?", "steps": ["2", "So 2."]}\n{\n')
    command = ["score", "pair", str(source), "-o", str(tmp_path / "scored.jsonl"), "--tokens"]
    assert CliRunner().invoke(main, command).exit_code == 1
    return tmp_path / "scored.jsonl"


def test_a_report_is_made_of_what_score_writes(scored_file: Path, tmp_path: Path) -> None:
    done = invoke(scored_file, "-o", tmp_path / "report.html", "--threshold", "-0.5")
    assert (done.exit_code, done.stdout) == (0, "")
    page = data_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (page["source"], page["threshold"]) == ("scored.jsonl", -0.5)
    origin = page["origin"]
    assert (origin["convention"], origin["beta"], origin["version"]) == (
        "card",
        "0.001",
        version("stepscore"),
    )
    assert origin["date"].endswith("Z")
    assert page["records"][0]["tokens"]["texts"] == list("1 + 1?2So 2.")
    assert page["records"][1]["error"]["code"] == "invalid_json"


# Samples of one problem


def samples(tmp_path: Path, *given: tuple[float, str | None, Any], **fields: Any) -> dict[str, Any]:
    """The page of samples of one problem, each with its outcome, its answer and its true answer."""
    found = [
        scored_lines.scored([reward], id=f"s{at}", problem="p", answer=answer, final_answer=truth, **fields)
        for at, (reward, answer, truth) in enumerate(given)
    ]
    done = invoke(scored_lines.write(tmp_path / "samples.jsonl", *found))
    assert done.exit_code == 0
    return dict(data_of(done.stdout), stderr=done.stderr)


@pytest.mark.parametrize("method", list(Method))
def test_every_method_selects_the_sample_that_select_writes(tmp_path: Path, method: Method) -> None:
    given = [(0.1, "1/2", "1/2"), (0.9, "7", "1/2"), (0.2, r"\frac{1}{2}", "1/2"), (-0.5, "0.5", "1/2")]
    (problem,) = samples(tmp_path, *given)["problems"]
    command = ["select", str(tmp_path / "samples.jsonl"), "--method", method, "-o", str(tmp_path / "chosen")]
    assert CliRunner().invoke(main, command).exit_code == 0
    (line,) = lines_of((tmp_path / "chosen").read_bytes())
    assert f"s{problem['selected'][method]}" == json.loads(line)["id"]
    assert problem["correct"] == [True, False, True, True]
    assert problem["answers"] == ["1/2", "7", "1/2", "1/2"]


def test_answers_in_latex_are_rendered(tmp_path: Path) -> None:
    page = samples(tmp_path, (0.1, r"\sqrt{2}", None), (0.2, "so 2", None))
    (problem,) = page["problems"]
    assert problem["answer_spans"] == [[0, 8, 0], []]
    assert page["formulas"][0][2][0] == "msqrt"


def test_problems_whose_true_answers_differ_have_a_fault_and_no_selection(tmp_path: Path) -> None:
    page = samples(tmp_path, (0.1, "1", "1"), (0.2, "2", "2"))
    (problem,) = page["problems"]
    assert "`final_answer` must be the problem's true answer" in problem["fault"]
    assert "selected" not in problem


def test_an_answer_field_of_neither_kind_is_named_and_nothing_is_selected(tmp_path: Path) -> None:
    boxed = {"steps": [r"\boxed{3}"]}
    page = samples(tmp_path, (0.1, "1", None), (0.2, "2", None), **boxed)
    assert page["problems"] == [{"samples": [0, 1]}]
    assert "`answer` is neither" in page["notes"][0]
    assert "`answer` is neither" in page["stderr"]


def test_without_math_verify_answers_are_compared_as_text_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> bool:
        raise ExtraMissing("math_verify is not installed", hint="pip install 'stepscore[select]'")

    monkeypatch.setattr("stepscore.selection.answers.same", missing)
    page = samples(tmp_path, (0.1, "0.5", None), (0.2, "1/2", None))
    assert page["problems"][0]["answers"] == ["0.5", "1/2"]
    assert page["notes"] == [
        "answers are compared as text, for math_verify is not installed: pip install 'stepscore[select]'"
    ]


def test_single_samples_and_errors_are_no_problem_of_several(scored_file: Path) -> None:
    assert "problems" not in data_of(invoke(scored_file).stdout)


# Options and files


def test_a_threshold_in_nats_is_a_reward_on_the_page(scored_file: Path, tmp_path: Path) -> None:
    page = data_of(invoke(scored_file, "--threshold-nats", "-500").stdout)
    assert page["threshold"] == -0.5
    scored_file.write_bytes(b"".join(lines_of(scored_file.read_bytes())))
    fingerprint_path(scored_file).unlink()
    done = invoke(scored_file, "--threshold-nats", "-500")
    assert done.exit_code == 2
    assert "--threshold-nats needs the beta of the rewards" in done.stderr


def test_a_threshold_that_marks_nothing_is_warned_of(scored_file: Path) -> None:
    done = invoke(scored_file, "--threshold", "-0.03")
    assert done.exit_code == 0
    assert "warning: threshold -0.03 is not above the lowest reward" in done.stderr


def test_report_without_output_is_printed(scored_file: Path) -> None:
    assert invoke(scored_file).stdout.startswith("<!doctype html>")


def test_an_earlier_report_is_replaced_and_no_other_file(scored_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert invoke(scored_file, "-o", output).exit_code == invoke(scored_file, "-o", output).exit_code == 0
    before = scored_file.read_bytes()
    done = invoke(scored_file, "-o", scored_file)
    assert done.exit_code == 3
    assert "already exists and is not a stepscore report\nhint: " in done.stderr
    assert scored_file.read_bytes() == before


def test_a_compressed_file_has_the_same_page(scored_file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / scored_file.name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(scored_file.read_bytes()))
    assert invoke(packed).stdout == invoke(scored_file).stdout


def test_a_report_that_cannot_be_written_leaves_nothing(scored_file: Path, tmp_path: Path) -> None:
    done = invoke(scored_file, "-o", tmp_path / "no" / "report.html")
    assert done.exit_code == 3
    assert "cannot write" in done.stderr


def test_a_file_that_was_not_scored_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"problem": "p", "steps": ["s"]}\n')
    done = invoke(tmp_path / "in.jsonl", "-o", tmp_path / "report.html")
    assert done.exit_code == 3
    assert "hint: give the output of `stepscore score` for texts, not its input" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_token_ids_have_no_text_to_show(scored_file: Path, tmp_path: Path) -> None:
    ids = {"prompt_token_ids": [1], "response_token_ids": [2]}
    line = scored_lines.scored([0.1], problem=None, steps=None, id="ids", **ids)
    path = scored_lines.write(tmp_path / "ids.jsonl", line)
    done = invoke(path)
    assert done.exit_code == 3
    assert (
        "no record has rewards and texts: the record holds token ids, but texts are needed here"
        in done.stderr
    )
    with path.open("ab") as file:
        file.write(scored_file.read_bytes())
    shown = data_of(invoke(path).stdout)["records"]
    assert (shown[0]["id"], shown[0]["error"]["code"], len(shown)) == ("ids", "invalid_record", 3)


def test_report_accepts_an_unfinished_run(scored_file: Path) -> None:
    with scored_file.open("ab") as file:
        file.write(b'{"id": 9, "pro')
    done = invoke(scored_file)
    assert done.exit_code == 0
    assert "skipped the last line" in done.stderr
    assert len(data_of(done.stdout)["records"]) == 2


@pytest.mark.parametrize("arguments", [[], ["no/such/file"], [".", "--threshold", "nan"]], ids=str)
def test_report_usage_errors_exit_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2

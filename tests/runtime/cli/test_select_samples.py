"""`stepscore select`: one record a problem out of what `score` wrote, and how right that is."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, lines_of, stop_clock
from testing.scored_lines import failed, scored, write
from testing.shared_data import SHARED_DATA

from stepscore.cli.main import main
from stepscore.jobs.jsonl import MAX_LINE_BYTES
from stepscore.scorer import Scorer


def select(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["select", *map(str, arguments)], input=stdin)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch)


def sample(at: str, score: float, answer: str | None = None, **fields: Any) -> dict[str, Any]:
    return scored([score], id=at, **({} if answer is None else {"answer": answer}), **fields)


@pytest.fixture
def two_problems(tmp_path: Path) -> Path:
    """Interleaved; "a" is for the score, "b" for the majority."""
    return write(
        tmp_path / "scored.jsonl",
        sample("a0", 0.1, "7", problem_id="a", final_answer="8"),
        sample("b0", 0.9, "3", problem_id="b", final_answer="4"),
        sample("a1", 0.5, "8", problem_id="a", final_answer="8"),
        sample("b1", 0.2, "4", problem_id="b", final_answer="4"),
        sample("a2", 0.5, "7", problem_id="a", final_answer="8"),
        sample("b2", 0.1, "4", problem_id="b", final_answer="4"),
    )


def test_samples_that_a_file_holds_twice_are_named(tmp_path: Path) -> None:
    once = [sample("a0", 0.1, "7"), sample("a1", 0.1, "7")]
    assert "more than once" not in select(write(tmp_path / "once.jsonl", *once)).stderr
    done = select(write(tmp_path / "twice.jsonl", *once, *once))
    assert "2 samples are there more than once (first: a0)" in done.stderr


def test_an_output_that_is_named_as_a_table_is_refused(two_problems: Path, tmp_path: Path) -> None:
    done = select(two_problems, "-o", tmp_path / "chosen.parquet")
    assert (done.exit_code, (tmp_path / "chosen.parquet").exists()) == (2, False)
    assert "select writes JSON Lines" in done.stderr


# What is chosen


def test_a_sample_behind_a_line_that_is_too_long_is_written_as_it_was_scored(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.jsonl", sample("a0", 0.1), sample("a1", 0.5))
    lines = path.read_bytes().splitlines(keepends=True)
    long = json.dumps({"problem": "x" * MAX_LINE_BYTES, "steps": ["a"]}).encode() + b"\n"
    path.write_bytes(lines[0] + long + lines[1])
    done = select(path, "-o", "-")
    assert done.exit_code == 1, done.stderr
    assert [line["id"] for line in answers(done.stdout)] == ["a1"]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], ["a1", "b0"]),
        (["--method", "majority"], ["a0", "b1"]),
        (["--method", "weighted"], ["a0", "b1"]),
        (["--method", "weighted", "--temperature", "100"], ["a0", "b1"]),
    ],
)
def test_one_record_a_problem_in_the_order_of_the_first_samples(
    two_problems: Path, options: list[str], chosen: list[str]
) -> None:
    done = select(two_problems, *options)
    assert done.exit_code == 0
    assert [line["id"] for line in answers(done.stdout)] == chosen


@pytest.mark.parametrize(
    ("series", "reducer", "chosen"),
    [
        ("cumulative", "last", "late"),
        ("cumulative", "max", "late"),
        ("cumulative", "min", "even"),
        ("step", "sum", "late"),
        ("step", "min", "even"),
        ("step", "last", "late"),
        ("step", "mean", "late"),
        ("cumulative", "mean", "even"),
    ],
)
def test_a_score_is_named_for_its_series_and_reducer(
    tmp_path: Path, series: str, reducer: str, chosen: str
) -> None:
    path = write(tmp_path / "s", scored([0.2, 0.2], id="even"), scored([-1.0, 1.5], id="late"))
    (line,) = answers(select(path, "--series", series, "--reducer", reducer).stdout)
    assert (line["id"], line["selection"]["score_name"]) == (chosen, f"{series}-{reducer}")


def test_samples_without_problem_id_are_grouped_by_problem_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s",
        scored([0.1], id=1, query="x", problem="x"),
        scored([0.3], id=2, problem="y"),
        scored([0.2], id=3, problem="x"),
    )
    assert [line["id"] for line in answers(select(path).stdout)] == [3, 2]


def test_an_answer_is_what_is_boxed_else_the_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s",
        scored([0.1], id=1, steps=[r"So \boxed{5}."], answer=5),
        scored([0.1], id=2, steps=[r"So \boxed{ 6 }."]),
        scored([0.1], id=3, steps=["So 6."], answer="6"),
        scored([0.1], id=4, steps=["So 5."]),
    )
    (line,) = answers(select(path, "--method", "majority", "--equality", "exact").stdout)
    assert line["selection"] | {"score": 0} == {
        "method": "majority",
        "score_name": "cumulative-last",
        "score": 0,
        "num_samples": 4,
        "answer": "6",
        "votes": 2,
    }


def boxes(*contents: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        scored([0.1 * at], id=at, steps=[rf"So \boxed{{{text}}}."], **fields)
        for at, text in enumerate(contents)
    ]


def test_a_field_that_is_the_same_for_all_samples_is_not_their_answer(tmp_path: Path) -> None:
    """MATH-500: `answer` is the data set's."""
    path = write(tmp_path / "s", *boxes("3", "3", "2", answer="2"), sample("x", 0.9, "2"))
    done = select(path, "--method", "majority")
    (line,) = answers(done.stdout)
    assert (line["selection"]["answer"], line["selection"]["votes"]) == ("3", 2)
    assert (
        "`answer` differs from the last \\boxed{} in 2 of 3 samples (first: 0): the box counts" in done.stderr
    )
    assert "name it `final_answer` to evaluate" in done.stderr
    assert "1 samples have no answer" in done.stderr


def test_a_sample_is_right_by_its_box_and_not_by_the_data_sets_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "s", *boxes("3", "3", "5", answer="2", final_answer="2"))
    assert means(accuracies(path)[0])["random"] == 0


def test_a_field_that_varies_is_the_samples_own_and_stands_for_a_missing_box(tmp_path: Path) -> None:
    own = [record | {"answer": text} for record, text in zip(boxes(*"3345"), "3346", strict=True)]
    done = select(write(tmp_path / "s", *own, sample("x", 0.9, "4")), "--method", "majority")
    (line,) = answers(done.stdout)
    assert line["selection"]["votes"] == 2
    assert "in 1 of 4 samples (first: 3)" in done.stderr
    assert "1 samples have no \\boxed{}: their `answer` counts" in done.stderr


def test_a_field_that_is_neither_answer_is_refused(tmp_path: Path) -> None:
    odd = [record | {"answer": text} for record, text in zip(boxes(*"3345"), "6789", strict=True)]
    done = select(write(tmp_path / "s", *odd), "--method", "majority", "-o", tmp_path / "out")
    assert done.exit_code == 3
    assert (
        "neither the sample's answer nor the data set's: it is '6' in 0, whose box holds '3'" in done.stderr
    )
    assert "del(.answer)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_samples_of_one_problem_have_one_true_answer(tmp_path: Path) -> None:
    one, two = boxes("3", "4")
    same = write(tmp_path / "same", one | {"final_answer": "0.5"}, two | {"final_answer": r"\frac12"})
    assert select(same).exit_code == 0
    done = select(write(tmp_path / "s", one | {"final_answer": "3"}, two | {"final_answer": "4"}))
    assert done.exit_code == 3
    assert "`final_answer` must be the problem's true answer" in done.stderr
    assert "'3' in 0, '4' in 1" in done.stderr


def test_a_true_answer_may_be_a_list_of_one(tmp_path: Path) -> None:
    assert means(accuracies(write(tmp_path / "s", *boxes("3", "2", final_answer=["2"])))[0])["random"] == 0.5


def test_one_problem_id_of_two_problems_is_two_problems(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s",
        *boxes("4", "5", problem="Two plus two?", problem_id=0),
        *boxes("7", "8", problem="Nine minus two?", problem_id=0),
        *boxes("1", "1", problem="One?  ", problem_id=1),
        *boxes("1", problem=" One?", problem_id=1),
    )
    done = select(path)
    assert [line["selection"]["num_samples"] for line in answers(done.stdout)] == [2, 2, 3]
    assert "1 values of `problem_id` have several problem texts (first: 0)" in done.stderr


def test_a_line_needs_only_its_rewards(tmp_path: Path) -> None:
    bare = [
        {"problem": "p", "steps": ["s"], "cumulative_rewards": [score], "step_rewards": [score]}
        for score in (0.1, 0.2)
    ]
    (line,) = answers(select(write(tmp_path / "s", *bare)).stdout)
    assert line["selection"]["score"] == 0.2


def test_select_keeps_passed_through_fields_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    other = b'"note":"\\u00e4 \\ud83d\\ude00","x":[1.50, {"y": null}],"answer":"2"'
    given = b'{"problem":"p","steps":["1","2"],' + other + b"}\n"
    (tmp_path / "in").write_bytes(given)
    CliRunner().invoke(main, ["score", "pair", str(tmp_path / "in"), "-o", str(tmp_path / "scored")])
    (rewards,) = lines_of((tmp_path / "scored").read_bytes())
    (chosen,) = lines_of(select(tmp_path / "scored").stdout_bytes)
    assert other in rewards
    assert chosen.startswith(rewards.rstrip(b"}\n") + b',"selection":{')


def test_a_selection_can_be_selected_from_again(two_problems: Path, tmp_path: Path) -> None:
    select(two_problems, "-o", tmp_path / "chosen")
    again = select(tmp_path / "chosen")
    assert [line["id"] for line in answers(again.stdout)] == ["a1", "b0"]


def test_standard_input_can_be_selected_from(two_problems: Path) -> None:
    assert select("-", stdin=two_problems.read_bytes()).stdout == select(two_problems).stdout


# How right that is


def accuracies(path: Path, *options: object) -> list[dict[str, Any]]:
    done = select(path, "--json", *options)
    return json.loads(done.stdout)["accuracies"]


def means(row: dict[str, Any]) -> dict[str, float]:
    return {name: value["mean"] for name, value in row.items() if isinstance(value, dict)}


def test_accuracies_stand_beside_majority_random_and_pass_at_n(two_problems: Path) -> None:
    one, two, three = accuracies(two_problems, "--n", "1,2,3")
    assert means(one) == pytest.approx(
        {"chosen": 0.5, "random": 0.5, "pass_at_n": 0.5, "majority": 0.5, "over_majority": 0}
    )
    assert means(two) == pytest.approx(
        {"chosen": 0.5, "random": 0.5, "pass_at_n": 5 / 6, "majority": 1 / 3, "over_majority": 1 / 6}
    )
    assert means(three) == pytest.approx(
        {"chosen": 0.5, "random": 0.5, "pass_at_n": 1, "majority": 0.5, "over_majority": 0}
    )


def test_the_datas_own_verdict_counts_before_the_final_answer(tmp_path: Path) -> None:
    """In ProcessBench `final_answer` is the sample's own."""
    path = write(tmp_path / "s", sample("a", 0.1, "7", final_answer="7", final_answer_correct=False))
    assert means(accuracies(path)[0])["chosen"] == 0


def test_a_problem_with_fewer_samples_is_left_out_of_that_n(tmp_path: Path) -> None:
    short, long = [
        [sample(f"{name}{i}", 0.1, "7", problem_id=name, final_answer="7") for i in range(count)]
        for name, count in (("short", 1), ("long", 3))
    ]
    rows = accuracies(write(tmp_path / "s", *short, *long), "--n", "1,2,4")
    assert [(row["n"], row["num_problems"]) for row in rows] == [(1, 2), (2, 1)]


def test_select_without_truth_gives_choices_and_no_accuracies(tmp_path: Path) -> None:
    done = select(write(tmp_path / "s", sample("a", 0.1, "7")))
    assert len(answers(done.stdout)) == 1
    assert "1 problems are not evaluated" in done.stderr
    assert "accuracy" not in done.stderr


@pytest.mark.parametrize(("sizes", "named"), [("16", "16"), ("1,2,8,16", "8,16")])
def test_an_n_that_no_problem_has_is_said(two_problems: Path, sizes: str, named: str) -> None:
    said = f"no accuracies for --n {named}: no evaluated problem has more than 3 samples"
    assert said in select(two_problems, "--n", sizes).stderr


def test_an_n_without_true_answers_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "s", sample("a", 0.1, "7"), sample("b", 0.1, "7"))
    assert "although --n is given: the true answers are missing" in select(path, "--n", "2").stderr


def test_problems_with_one_sample_are_said(tmp_path: Path) -> None:
    one, two, three = (sample(at, 0.1, "7", problem=at[0]) for at in ("a0", "b0", "b1"))
    assert "nothing to choose: every problem has one sample" in select(write(tmp_path / "s", one, two)).stderr
    said = select(write(tmp_path / "s", one, two, three)).stderr
    assert "1 problems have one sample, which is selected as it is" in said


# Where it goes


def test_accuracies_go_where_the_choices_do_not(two_problems: Path, tmp_path: Path) -> None:
    alone = select(two_problems)
    assert "accuracy in %" in alone.stderr
    assert len(answers(alone.stdout)) == 2
    beside = select(two_problems, "-o", tmp_path / "chosen")
    assert "accuracy in %" in beside.stdout
    assert (tmp_path / "chosen").read_bytes() == alone.stdout_bytes
    as_json = select(two_problems, "-o", tmp_path / "chosen", "--json")
    assert json.loads(as_json.stdout) == json.loads(select(two_problems, "--json").stdout)


def test_an_output_that_cannot_be_written_leaves_nothing(two_problems: Path, tmp_path: Path) -> None:
    done = select(two_problems, "-o", tmp_path / "no" / "such" / "folder")
    assert done.exit_code == 3
    assert "cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == [two_problems]


def test_a_device_is_written_to_and_stays_one(two_problems: Path) -> None:
    assert select(two_problems, "-o", os.devnull).exit_code == 0
    assert not Path(os.devnull).is_file()


def test_a_link_to_the_output_stays_one(two_problems: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    select(two_problems, "-o", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(answers((tmp_path / "real").read_bytes())) == 2


def test_the_output_is_not_the_input(two_problems: Path) -> None:
    before = two_problems.read_bytes()
    assert select(two_problems, "-o", two_problems).exit_code == 3
    assert two_problems.read_bytes() == before


# What goes wrong


def test_records_with_errors_are_counted_named_and_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s",
        sample("a", 0.1, "7"),
        failed("b"),
        {"id": "c", "problem": "p", "steps": ["s"]},
        scored([0.1, 0.2], id="d", steps=["one"]),
    )
    with path.open("a") as file:
        file.write('{"id": "torn')
    done = select(path)
    assert done.exit_code == 1
    assert len(answers(done.stdout)) == 1
    assert "4 records with errors (invalid_json 1, invalid_record 2, too_long 1): b, c, d, 4" in done.stderr
    errors = json.loads(select(path, "--json").stdout)["errors"]
    assert [error["id"] for error in errors] == ["b", "c", "d", 4]
    assert "score the record first" in errors[1]["error"]["message"]


def test_a_problem_without_answers_is_an_error_record_when_there_is_a_vote(tmp_path: Path) -> None:
    path = write(tmp_path / "s", sample("a", 0.1, problem="x"), sample("b", 0.1, "7", problem="y"))
    done = select(path, "--method", "majority")
    assert done.exit_code == 1
    bad, good = answers(done.stdout)
    assert (bad["id"], bad["error"]["code"], good["id"]) == ("a", "no_answer", "b")
    assert "1 samples have no answer" in done.stderr
    assert json.loads(select(path, "--json").stdout)["num_without_answer"] == 1
    by_score = select(path)  # chooses without answers
    assert by_score.exit_code == 0
    assert "answer" not in by_score.stderr.replace("final_answer", "")


def test_a_file_that_was_not_scored_is_refused(tmp_path: Path) -> None:
    done = select(write(tmp_path / "s", {"problem": "p", "steps": ["s"]}), "-o", tmp_path / "out")
    assert done.exit_code == 3
    assert "no record has rewards" in done.stderr
    assert "hint: give the output of `stepscore score`, not its input" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reducer", "prod"], "prod is not supported: rewards are signed"),
        (["--reducer", "median"], "is not one of"),
        (["--method", "majority", "--temperature", "2"], "needs --method best-of-n or weighted"),
        (["--method", "weighted", "--temperature", "0"], "above 0"),
        (["--n", "1,x"], "invalid list of sample counts"),
        (["--n", "0"], "invalid list of sample counts"),
    ],
)
def test_usage_errors_exit_2(two_problems: Path, options: list[str], message: str) -> None:
    done = select(two_problems, *options)
    assert done.exit_code == 2
    assert message in done.stderr


# Real samples


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
def test_the_known_figures_of_100_problems_come_out(tmp_path: Path) -> None:
    """Majority 93, pass@8 96, mean 91 of 100, whatever the scores; an oracle's scores reach pass@8."""
    assert SHARED_DATA is not None
    rng = random.Random(0)
    text = (SHARED_DATA / "math_best_of_8.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.strip().split("\n")]
    noise = [scored([rng.gauss(0, 1) for _ in record["steps"]], **record) for record in records]
    (row,) = accuracies(write(tmp_path / "noise", *noise), "--n", "8")
    found = means(row)
    assert (found["majority"], found["pass_at_n"], found["random"]) == pytest.approx((0.93, 0.96, 0.91))
    oracle = [scored([float(r["final_answer_correct"])] * len(r["steps"]), **r) for r in records]
    (row,) = accuracies(write(tmp_path / "oracle", *oracle), "--n", "8", "--reducer", "min")
    assert row["chosen"] == row["pass_at_n"]

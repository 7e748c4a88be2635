"""`stepscore evaluate processbench`: the official figures, at a threshold chosen on one subset."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, stop_clock
from testing.scored_lines import failed, scored, write
from testing.shared_data import SHARED_DATA

from stepscore.cli.main import main
from stepscore.enums import Series
from stepscore.evaluation.processbench import best_threshold, evaluate_processbench, labelled
from stepscore.evaluation.threshold import outside_of
from stepscore.jobs.provenance import Headers
from stepscore.jobs.scored_records import Scored, read_scored
from stepscore.jobs.seal import fingerprint_path
from stepscore.scorer import Scorer


@pytest.fixture(autouse=True, scope="module")
def _clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stop_clock(patch)
        yield


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", "processbench", *map(str, arguments)])


def figures(*arguments: object) -> dict[str, Any]:
    done = evaluate("--json", *arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def run_of(path: Path, *, beta: str = "0.001", convention: str = "card") -> Path:
    """Put the fingerprint of a run beside a scored file, as it was before there were headers."""
    fingerprint = {"pair": "p", "beta": beta, "convention": convention, "limit": "none", "tokens": "no"}
    fingerprint_path(path).write_text(json.dumps(fingerprint))
    return path


GSM8K = [
    scored([0.5, -0.5], id="gsm8k-0", label=1),
    scored([0.25, 0.5], id="gsm8k-1", label=-1),
    scored([-0.75], id="gsm8k-2", label=-1),
]
MATH = [
    scored([0.5, -1.0, -2.0], id="math-0", label=1),
    scored([0.5, 0.2], id="math-1", label=0),
    scored([0.0], id="math-2", label=-1),
]


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    return run_of(write(tmp_path / "one.jsonl", *GSM8K)), run_of(write(tmp_path / "two.jsonl", *MATH))


# Figures


def test_accuracies_and_f1_are_the_official_ones_and_the_average_is_unweighted(
    both: tuple[Path, Path],
) -> None:
    found = figures(*both)
    gsm8k, math = found["subsets"]
    assert (gsm8k["name"], gsm8k["num_error"], gsm8k["num_correct"]) == ("gsm8k", 1, 2)
    assert (gsm8k["accuracy_error"], gsm8k["accuracy_correct"]) == (1.0, 0.5)
    assert gsm8k["f1"] == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert (math["accuracy_error"], math["accuracy_correct"]) == (0.5, 1.0)
    assert found["average_f1"] == pytest.approx((gsm8k["f1"] + math["f1"]) / 2)


def test_the_threshold_is_chosen_on_one_subset_and_kept_for_the_others(both: tuple[Path, Path]) -> None:
    limit = figures(*both)["threshold"]
    assert limit == {"reward": -0.125, "nats": -125.0, "chosen_on": "gsm8k"}  # between -0.5 and 0.25
    other = figures(*both, "--threshold-from", "math")["threshold"]
    assert (other["chosen_on"], other["reward"]) == ("math", -0.5)


@pytest.mark.parametrize("given", [("--threshold", "-0.6"), ("--threshold-nats", "-600")])
def test_a_threshold_is_given_as_a_reward_or_in_nats(both: tuple[Path, Path], given: tuple[str, str]) -> None:
    found = figures(*both, *given)
    assert found["threshold"] == {
        "reward": pytest.approx(-0.6),
        "nats": pytest.approx(-600.0),
        "chosen_on": None,
    }
    assert [subset["accuracy_error"] for subset in found["subsets"]] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("threshold", "warning"),
    [
        ("-2.5", "threshold -2.5 is not above the lowest reward (-2 to 0.5): no step is below it"),
        ("-2", "threshold -2 is not above the lowest reward (-2 to 0.5): no step is below it"),
        ("-1.9", None),
        ("0.5", None),
        ("0.6", "threshold 0.6 is above the highest reward (-2 to 0.5): every step is below it"),
    ],
)
def test_a_threshold_outside_of_what_the_rewards_span_is_warned_of(
    both: tuple[Path, Path], threshold: str, warning: str | None
) -> None:
    said = evaluate(*both, "--threshold", threshold).stderr
    expected = "" if warning is None else f"warning: {warning}; if it is in nats, use --threshold-nats\n"
    assert said == expected


@given(
    st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.floats(-10, 10)
)
def test_a_warning_says_that_a_threshold_marks_nothing_or_every_step(
    solutions: list[list[float]], threshold: float
) -> None:
    below = [reward < threshold for rewards in solutions for reward in rewards]
    said = outside_of(threshold, solutions)
    assert (said is None) == (any(below) and not all(below))


def test_the_chosen_threshold_given_again_finds_the_same(both: tuple[Path, Path]) -> None:
    chosen = figures(*both)
    for option, unit in (("--threshold", "reward"), ("--threshold-nats", "nats")):
        assert figures(*both, option, chosen["threshold"][unit])["subsets"] == chosen["subsets"]


def test_cumulative_rewards_are_judged_on_request(both: tuple[Path, Path]) -> None:
    found = figures(*both, "--series", "cumulative", "--threshold", "-0.1")
    assert found["series"] == "cumulative"
    assert [subset["accuracy_error"] for subset in found["subsets"]] == [0.0, 0.5]


def test_no_threshold_does_better_than_the_upper_bound(both: tuple[Path, Path]) -> None:
    @given(st.floats(-3, 1))
    def holds(reward: float) -> None:
        for subset in figures(*both, "--threshold", reward)["subsets"]:
            assert subset["f1"] <= subset["upper_bound"]["f1"]

    holds()
    done = evaluate(*both)
    assert "upper bound F1" in done.stdout
    assert "chosen on each subset's own labels; not a reportable result" in done.stdout
    assert "threshold -125 nats, reward -0.125 at beta 0.001; chosen on gsm8k" in done.stdout


def test_a_subset_with_correct_samples_only_has_no_f1(tmp_path: Path, both: tuple[Path, Path]) -> None:
    extra = write(tmp_path / "x", scored([1.0], id="easy-0", label=-1))
    found = figures(*both, extra)
    easy = found["subsets"][2]
    assert (easy["f1"], easy["accuracy_error"], easy["accuracy_correct"]) == (None, None, 1.0)
    assert found["average_f1"] is None
    assert evaluate(extra, "--threshold-from", "easy").exit_code == 3


def test_a_subset_is_what_ids_begin_with_or_the_name_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.scored.jsonl",
        scored([1.0], id=7, label=-1),
        scored([1.0], id="omni-math-12", label=-1),
        scored([1.0], id="odd", label=0),
        scored([1.0], id="../odd-1", label=0),
    )
    found = figures(path, "--threshold", "0")
    assert [subset["name"] for subset in found["subsets"]] == ["mine", "omni-math"]


# Files


def test_the_two_files_a_subset_are_the_official_scripts(both: tuple[Path, Path], tmp_path: Path) -> None:
    assert evaluate(*both, "-o", tmp_path / "out").exit_code == 0
    names = ["gsm8k_correct", "gsm8k_error", "math_correct", "math_error"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.jsonl" for name in names]
    wrong = answers((tmp_path / "out" / "math_error.jsonl").read_bytes())
    assert wrong == [
        MATH[0] | {"prediction": 1, "match": True},
        MATH[1] | {"prediction": -1, "match": False},
    ]


def test_evaluate_with_a_pair_scores_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorers: list[FakeScorer] = []

    def load(pair: object, **options: Any) -> FakeScorer:
        scorers.append(FakeScorer.load(pair, **options))
        return scorers[-1]

    monkeypatch.setattr(Scorer, "load", load)
    records = [
        {"id": f"set-{i}", "problem": f"p{i}", "steps": ["a", str(i)], "label": i % 3 - 1} for i in range(9)
    ]
    path = write(tmp_path / "set.jsonl", *records)
    options = ["--pair", "pair", path, "--threshold-from", "set", "--beta", "0.05"]
    kept = figures(*options, "-o", tmp_path / "out")
    assert len(scorers[0].scored) == 9
    assert kept["beta"] == 0.05
    assert figures(*options, "-o", tmp_path / "out", "--series", "cumulative")["series"] == "cumulative"
    assert scorers[1].scored == []
    assert figures(*options) == kept  # into a folder that goes away
    assert figures(tmp_path / "out" / "set.scored.jsonl", "--threshold-from", "set") == kept


# What goes wrong


def test_records_that_cannot_be_judged_are_counted_named_and_left_out(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = write(
        tmp_path / "bad",
        failed("gsm8k-9"),
        scored([0.1], id="gsm8k-10"),
        scored([0.1], id="gsm8k-11", label=1),
        scored([0.5], id="gsm8k-12", label=-1),
    )
    done = evaluate(*both, bad, "--json")
    assert done.exit_code == 1
    assert "3 records with errors (invalid_record 2, too_long 1): gsm8k-9, gsm8k-10, gsm8k-11" in done.stderr
    found = json.loads(done.stdout)
    assert [error["id"] for error in found["errors"]] == ["gsm8k-9", "gsm8k-10", "gsm8k-11"]
    assert found["subsets"][0]["num_correct"] == 3


@pytest.mark.parametrize(("name", "other"), [("beta", "0.05"), ("convention", "exact")])
def test_files_of_different_runs_are_not_comparable(both: tuple[Path, Path], name: str, other: str) -> None:
    run_of(both[1], **{name: other})
    done = evaluate(*both)
    assert done.exit_code == 3
    assert f"were scored with different {name}s" in done.stderr


def test_nats_need_the_beta_of_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "s", *GSM8K)
    assert "--threshold-nats needs the beta" in evaluate(path, "--threshold-nats", "1").stderr
    assert evaluate(path, "--threshold", "0.1").exit_code == 0
    assert "(give --beta to see it in nats)" in evaluate(path).stdout
    assert figures(path, "--beta", "0.05")["threshold"]["nats"] == -2.5


def test_an_unknown_subset_is_answered_with_those_there_are(both: tuple[Path, Path]) -> None:
    done = evaluate(*both, "--threshold-from", "olympiadbench")
    assert done.exit_code == 3
    assert "hint: use --threshold-from with one of: gsm8k, math" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "1", "--threshold-from", "gsm8k"], "not both"),
        (["--threshold-nats", "1", "--threshold-from", "gsm8k"], "not both"),
        (["--threshold", "1", "--threshold-nats", "1"], "not both"),
        (["--threshold-nats", "inf"], "finite"),
        (["--convention", "exact"], "--convention needs --pair"),
        (["--beta", "0.05"], "were scored with 0.001"),
        (["--threshold", "nan"], "finite"),
    ],
)
def test_usage_errors_exit_2(both: tuple[Path, Path], options: list[str], message: str) -> None:
    done = evaluate(*both, *options)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("beta", ["abc", "0", "-1", "inf", "nan"])
def test_a_fingerprint_with_an_impossible_beta_is_named(tmp_path: Path, beta: str) -> None:
    done = evaluate(run_of(write(tmp_path / "s", *GSM8K), beta=beta))
    assert done.exit_code == 3
    assert f"gives the beta '{beta}', expected a positive number" in done.stderr


# Real text


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
def test_an_oracles_scores_find_every_wrong_step_of_the_real_subset(tmp_path: Path) -> None:
    assert SHARED_DATA is not None
    rng = random.Random(0)
    text = (SHARED_DATA / "processbench_gsm8k.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.strip().split("\n")]
    sure = [
        scored([1.0 if k != record["label"] else -1.0 for k in range(len(record["steps"]))], **record)
        for record in records
    ]
    path = write(tmp_path / "gsm8k.jsonl", *sure)
    assert figures(path)["average_f1"] == 1.0
    noise = [scored([rng.gauss(0, 1) for _ in record["steps"]], **record) for record in records]
    with write(tmp_path / "noise.jsonl", *noise).open("rb") as file:
        samples = [
            labelled(record, 0, "noise.jsonl")
            for record in read_scored(file, Series.STEP, Headers("noise"))
            if isinstance(record, Scored)
        ]
    verdict = evaluate_processbench(
        samples, best_threshold(samples, "gsm8k", None), series=Series.STEP, beta=None
    )
    assert len(samples) == 400
    assert verdict.average_f1 == verdict.average_f1_upper_bound
    assert 0.1 < (verdict.average_f1 or 0) < 0.6

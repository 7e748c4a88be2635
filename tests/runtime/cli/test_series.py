"""Readings of the rewards and token ids, where scored lines are read: select, evaluate, report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from testing.outputs import answers
from testing.scored_lines import scored, write

from stepscore.cli.main import main


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def chosen(path: Path, *options: object) -> list[dict[str, Any]]:
    done = invoke("select", path, *options)
    assert done.exit_code == 0, done.stderr
    return answers(done.stdout)


def line(name: str, ends: list[int], rewards: list[float], **fields: Any) -> dict[str, Any]:
    return scored(rewards, id=name) | {"step_ends": ends, "first_summed": 2, "response_start": 3} | fields


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Means 0.4, 0.25 and 0.5, 0.1: the longer one has the higher sum, the shorter one the higher mean."""
    return write(
        tmp_path / "scored.jsonl",
        line("long", [6, 9], [2.0, 0.0], label=1),
        line("short", [2, 3], [0.5, 0.3], label=-1),
    )


# Length-normalized readings


@pytest.mark.parametrize(
    ("series", "reducer", "name", "score"),
    [
        ("cumulative", "last", "long", 2.0),
        ("mean", "last", "short", 0.4),
        ("mean", "min", "short", 0.4),
        ("mean-difference", "min", "short", 0.4 - 0.5),
        ("mean-difference", "sum", "short", 0.4),
    ],
)
def test_select_scores_by_the_reading_that_is_named(
    samples: Path, series: str, reducer: str, name: str, score: float
) -> None:
    (found,) = chosen(samples, "--series", series, "--reducer", reducer)
    assert (found["id"], found["selection"]["score_name"]) == (name, f"{series}-{reducer}")
    assert found["selection"]["score"] == pytest.approx(score, abs=1e-12)


def test_evaluate_compares_the_reading_that_is_named(samples: Path) -> None:
    options = ("--json", "--threshold", "0.3", "--series", "mean")
    done = invoke("evaluate", "processbench", samples, *options)
    figures = json.loads(done.stdout)
    assert figures["series"] == "mean"
    assert (figures["subsets"][0]["accuracy_error"], figures["subsets"][0]["accuracy_correct"]) == (1.0, 1.0)


@pytest.mark.parametrize("missing", ["first_summed", "step_ends"])
def test_a_line_of_an_earlier_version_has_no_mean_and_says_why(samples: Path, missing: str) -> None:
    old = line("old", [2], [9.0])
    del old[missing]
    with samples.open("a") as file:
        file.write(json.dumps(old) + "\n")
    done = invoke("select", samples, "--series", "mean")
    assert done.exit_code == 1
    assert answers(done.stdout)[0]["id"] == "short"
    assert "skipped 1 records with errors (invalid_record 1): old" in done.stderr
    assert chosen(samples)[0]["id"] == "old"
    alone = invoke("select", write(samples, old), "--series", "mean")
    assert f"`{missing}` is missing, which the series `mean` divides by" in alone.stderr


def test_a_count_below_one_is_no_divisor(tmp_path: Path) -> None:
    done = invoke("select", write(tmp_path / "in", line("a", [1], [1.0])), "--series", "mean")
    assert done.exit_code == 3
    assert "`step_ends` and `first_summed` do not match" in done.stderr


def test_a_mean_over_the_prompt_is_warned_of(samples: Path, tmp_path: Path) -> None:
    assert "convention card" not in invoke("select", samples, "--series", "mean").stderr
    card = write(tmp_path / "card", line("a", [4], [1.0], first_summed=0, label=-1))
    for command in (["select"], ["evaluate", "processbench", "--threshold", "0.1"]):
        said = invoke(*command, card, "--series", "mean").stderr
        assert "warning: 1 records were scored with the convention card" in said
        assert "convention card" not in invoke(*command, card).stderr


# Probabilities


@pytest.mark.parametrize("method", ["best-of-n", "weighted"])
def test_a_temperature_adds_the_probability_of_the_score(samples: Path, method: str) -> None:
    with samples.open("a") as file:
        file.write(json.dumps(line("answered", [9], [4.0], answer="7")) + "\n")
    (plain,) = chosen(samples, "--method", method)
    assert "probability" not in plain["selection"]
    (found,) = chosen(samples, "--method", method, "--temperature", "2")
    assert found["selection"]["score"] == 4.0
    assert found["selection"]["probability"] == pytest.approx(1 / (1 + math.exp(-2)))


# Token ids


@pytest.fixture
def of_ids(tmp_path: Path) -> Path:
    def ids(name: str, prompt: list[int], reward: float, **fields: Any) -> dict[str, Any]:
        texts = {"problem": None, "steps": None, "prompt_token_ids": prompt, "response_token_ids": [9, 9]}
        ends = {"step_ends": [1], "first_summed": 0, "response_start": len(prompt)}
        return {**scored([reward], id=name, label=-1), **texts, **ends, **fields}

    return write(
        tmp_path / "ids.jsonl",
        ids("a0", [1, 2], 0.1, answer="7", final_answer="7"),
        ids("b0", [1, 3], 0.2, answer="5", final_answer="6"),
        ids("a1", [1, 2], 0.3, answer="8", final_answer="7"),
        ids("a2", [1, 2], 0.2, answer="7", final_answer="7"),
    )


def test_samples_of_one_prompt_belong_together(of_ids: Path) -> None:
    assert [found["id"] for found in chosen(of_ids)] == ["a1", "b0"]
    assert [found["id"] for found in chosen(of_ids, "--method", "majority")] == ["a0", "b0"]
    (found, _) = chosen(of_ids, "--series", "mean")
    assert found["selection"]["score"] == 0.15


def test_token_ids_have_no_box_to_vote_with(of_ids: Path) -> None:
    lines = [json.loads(text) for text in of_ids.read_text().splitlines()]
    unanswered = [{name: value for name, value in each.items() if name != "answer"} for each in lines]
    done = invoke("select", write(of_ids, *unanswered), "--method", "majority")
    assert done.exit_code == 1
    assert [answer["error"]["code"] for answer in answers(done.stdout)] == ["no_answer"] * 2


def test_evaluate_reads_lines_of_token_ids(of_ids: Path) -> None:
    done = invoke("evaluate", "processbench", of_ids, "--threshold", "0.15", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["subsets"][0]["accuracy_correct"] == 0.75

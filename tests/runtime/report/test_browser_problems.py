"""Problems of several samples in a real browser: their table, their curves, two of them side by side."""

from __future__ import annotations

from typing import Any

import pytest
from testing.browser import Browser
from testing.scored_records import scored
from testing.shown_report import ShownReport

from stepscore.report.page import Problem

pytestmark = pytest.mark.browser

SAMPLES = [
    scored(0.02, 0.05, id="s0", problem_id="p"),
    scored(0.03, 0.06, 0.01, id="s1", problem_id="p"),
    scored(0.02, -0.03, id="s2", problem_id="p"),
]
PROBLEM = Problem(
    samples=[0, 1, 2],
    answers=["4", "5", "4"],
    answer_spans=[[], [], []],
    correct=[True, False, True],
    selected={"best-of-n": 1, "weighted": 0, "majority": 0},
)


@pytest.fixture
def problem(report: ShownReport) -> ShownReport:
    report(SAMPLES, problems=[PROBLEM])
    return report


def rows(report: ShownReport) -> list[list[str]]:
    cells = report.browser.run(
        "[...document.querySelectorAll('.samples tbody tr')].map((row) => "
        "[...row.children].map((cell) => cell.textContent))"
    )
    return [row[1:] for row in cells]


def test_table_of_samples_has_outcome_answer_verdict_and_method(problem: ShownReport) -> None:
    assert problem.texts("#count") == ["3 solutions in 1 problem"]
    assert rows(problem) == [
        ["s1", "+0.1000", "+0.0100", "", "5", "✗ wrong", "best of n"],
        ["s0", "+0.0700", "+0.0200", "", "4", "✓ right", "weighted votemajority"],
        ["s2", "−0.0100", "−0.0300", "", "4", "✓ right", ""],
    ]


def test_figures_judge_each_method_by_its_samples(problem: ShownReport) -> None:
    found = dict(zip(problem.texts("#facts dt"), problem.texts("#facts dd"), strict=True))
    assert found["best of n right"] == "0.0 % of 1"
    assert found["weighted vote right"] == found["majority right"] == "100.0 % of 1"


def test_curves_of_samples_share_an_axis_with_a_scale_and_a_legend(problem: ShownReport) -> None:
    paths = problem.browser.run(
        "[...document.querySelectorAll('.chart path')].map((path) => path.getAttribute('d'))"
    )
    curves = [path for path in paths if path.count("L") > 1]
    assert sorted(path.count("L") for path in curves) == [2, 2, 3]
    assert len({path.split("L")[0] for path in curves}) == 1  # all begin at 0
    labels = problem.texts(".chart text")
    assert {"0.00", "0.05", "0.10", "step", "cumulative reward", "s0 ✓", "s1 ✗", "s2 ✓"} <= set(labels)


def test_two_samples_stand_side_by_side_and_others_can_be_chosen(problem: ShownReport) -> None:
    def pairs() -> Any:
        return problem.browser.run(
            "[...document.querySelectorAll('.pairs .pair')].map((pair) => "
            "[...pair.querySelectorAll('.half')].map((half) => half.querySelector('.reward')?.textContent))"
        )

    assert problem.texts(".side strong") == ["s1", "s0"]  # best of n, and the best that is right
    assert pairs() == [["+0.0300", "+0.0200"], ["+0.0600", "+0.0500"], ["+0.0100", None]]
    problem.browser.run("document.querySelectorAll('.samples input')[2].click()")
    assert problem.texts(".side strong") == ["s0", "s2"]
    assert pairs()[1] == ["+0.0500", "−0.0300"]


def test_of_many_samples_only_those_that_stand_out_are_coloured(report: ShownReport) -> None:
    many = [scored(0.01 * k, 0.01, id=f"s{k}") for k in range(40)]
    selected = {"best-of-n": 39, "majority": 0}
    report(many, problems=[Problem(list(range(40)), [None] * 40, [[]] * 40, [], selected)])
    assert report.count(".chart path") == 40 + 3  # curves, and samples in the legend
    assert "38 others" in report.texts(".chart text")
    assert len(rows(report)) == 32
    report.browser.run("document.querySelector('.scroll button').click()")
    assert len(rows(report)) == 40


def test_a_link_opens_its_solution_wherever_it_is(browser: Browser, report: ShownReport) -> None:
    many = [scored(0.001 * (k % 7), id=f"id {k}/{k}") for k in range(500)]
    report(many, "id=id+400%2F400")
    assert report.texts(".card[open] .name bdi")[-1] == "id 400/400"
    top = browser.run("document.activeElement.getBoundingClientRect().top")
    assert browser.run("document.activeElement.textContent").startswith("id 400/400")
    assert -1 <= top <= 900
    links = browser.run("[...document.querySelectorAll('.card[open] .link')].at(-1).getAttribute('href')")
    assert links == "#id=id+400%2F400"
    report(many, "id=nobody")
    assert report.texts("#count") == ['500 solutions; there is no solution "nobody" here']


def test_a_click_on_a_sample_opens_it(problem: ShownReport) -> None:
    problem.browser.run("document.querySelectorAll('.samples a')[1].click()")
    problem.browser.wait("document.querySelector('.card[open] .steps') !== null")
    assert problem.texts(".card[open] .name bdi") == ["s0"]

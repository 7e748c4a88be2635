"""The report in a real browser: steps are drawn and coloured, sorted and filtered; text stays text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.browser import Browser, find
from testing.scored_records import scored

from stepscore.cli.tables import suspicious_step
from stepscore.evaluation.first_error import processbench_f1
from stepscore.report.page import Page, render
from stepscore.report.solutions import solutions

pytestmark = pytest.mark.browser

RECORDS = [
    scored(0.02, -0.03, 0.01, id="mixed", label=1, final_answer_correct=False, problem_id="p"),
    scored(0.05, 0.01, id="good", label=-1, final_answer_correct=True, problem_id="q", problem="Pens?"),
    scored(-0.01, -0.06, id="bad", label=0, final_answer_correct=False, problem_id="p"),
    {"id": "long", "error": {"code": "too_long", "message": "5000 tokens"}},
]
HOSTILE = (
    "</script><img src=http://127.0.0.1:9/i onerror='document.title=1'><script>document.title=2</script>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no chromium on this machine: `make browser` installs it")
    with Browser(program) as browser:
        browser.size(1100, 900)
        yield browser


def show(browser: Browser, folder: Path, records: list[dict[str, Any]], state: str = "", **page: Any) -> None:
    found = solutions(json.dumps(record).encode() for record in records)
    path = folder / "report.html"
    path.write_text(render(Page("scored.jsonl", found, **page)), encoding="utf-8")
    browser.open(f"{path.as_uri()}#{state}")


def ids(browser: Browser) -> list[str]:
    found = browser.run("[...document.querySelectorAll('.card bdi')].map((node) => node.textContent)")
    return list(found)


def texts(browser: Browser, selector: str) -> list[str]:
    found = browser.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)"
    )
    return list(found)


def test_steps_are_drawn_with_their_rewards_signed_and_coloured(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, RECORDS)
    assert texts(browser, ".card[open] .reward") == ["+0.02000", "−0.03000", "+0.01000"]
    assert texts(browser, ".card[open] .total") == ["+0.02000", "−0.01000", "0.00000"]
    colours = browser.run(
        "[...document.querySelectorAll('.card[open] .step:not(.head)')]"
        ".map((node) => getComputedStyle(node).backgroundColor)"
    )
    assert len(set(colours)) == 3  # no two rewards are equal
    assert browser.run("document.querySelectorAll('.card[open] .curve circle').length") == 4


@pytest.mark.parametrize("threshold", [None, 0.0, 0.015, -1.0])
def test_the_marked_step_is_the_one_that_score_marks(
    browser: Browser, tmp_path: Path, threshold: float | None
) -> None:
    show(browser, tmp_path, RECORDS, threshold=threshold)
    marked = browser.run(
        "[...document.querySelectorAll('.strip')].map((node) => "
        "[...node.children].findIndex((cell) => cell.classList.contains('marked')))"
    )
    assert marked == [suspicious_step(each["step_rewards"], threshold) for each in RECORDS[:3]]


def facts(browser: Browser) -> dict[str, str]:
    return dict(zip(texts(browser, "#facts dt"), texts(browser, "#facts dd"), strict=True))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.015, -0.02, -1.0, 1.0])
def test_labels_are_judged_as_processbench_does(
    browser: Browser, tmp_path: Path, threshold: float | None
) -> None:
    show(browser, tmp_path, RECORDS, threshold=threshold)
    predictions = [suspicious_step(each["step_rewards"], threshold) for each in RECORDS[:3]]
    judged = processbench_f1(predictions, [each["label"] for each in RECORDS[:3]])
    found = facts(browser)
    assert found["F1 of first wrong steps"] == f"{100 * judged.f1:.1f} %"
    assert found["first wrong steps found"] == f"{100 * judged.accuracy_error:.1f} % of 2"
    assert found["right solutions marked"] == f"{100 * (1 - judged.accuracy_correct):.1f} % of 1"


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (-1.0, "below every reward, nothing is marked"),
        (-0.06, "below every reward"),
        (0.0, None),
        (0.06, "above every reward, every first step is marked"),
        (None, None),
    ],
)
def test_a_threshold_that_marks_nothing_is_named_and_is_no_success(
    browser: Browser, tmp_path: Path, threshold: float | None, said: str | None
) -> None:
    show(browser, tmp_path, RECORDS, threshold=threshold)
    found = facts(browser)
    assert (said or "") in found.get("threshold", "")
    assert ("threshold" in found) == (said is not None)
    if said is not None and said.startswith("below"):
        assert found["F1 of first wrong steps"] == "0.0 %"
        assert "100.0 %" not in " ".join(found.values())


def test_right_solutions_alone_are_no_figure(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, [RECORDS[1]], threshold=-1.0)
    assert not any("%" in value for name, value in facts(browser).items() if name != "answers right")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", ["mixed", "good", "bad", "long"]),
        ("sort=step", ["bad", "mixed", "good", "long"]),
        ("sort=-step", ["good", "mixed", "bad", "long"]),
        ("sort=outcome", ["bad", "mixed", "good", "long"]),
        ("sort=-outcome", ["good", "mixed", "bad", "long"]),
        ("sort=problem", ["mixed", "bad", "good", "long"]),
        ("show=right", ["good"]),
        ("show=wrong&sort=step", ["bad", "mixed"]),
        ("show=differ", ["bad"]),
        ("show=agree", ["mixed", "good"]),
        ("show=errors", ["long"]),
        ("q=PENS", ["good"]),
        ("q=too many", []),
        ("lowmax=-0.02", ["mixed", "bad"]),
        ("outmin=-0.001&outmax=0.001", ["mixed"]),
        ("sort=nonsense&show=nonsense", ["mixed", "good", "bad", "long"]),
    ],
)
def test_the_address_says_what_is_sorted_and_shown(
    browser: Browser, tmp_path: Path, state: str, expected: list[str]
) -> None:
    show(browser, tmp_path, RECORDS, state)
    assert ids(browser) == expected


def test_controls_sort_and_filter_and_write_the_address(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, RECORDS)
    browser.press("/")
    for key in "step 3":
        browser.press(key)
    browser.wait("location.hash === '#q=step+3'")
    assert ids(browser) == ["mixed"]
    assert texts(browser, "#count") == ["1 of 4 solutions"]
    browser.run("document.querySelector('[type=reset]').click()")
    browser.wait("location.hash === ''")
    assert len(ids(browser)) == 4


def test_keys_open_a_solution(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, RECORDS)
    browser.press("j")
    browser.press("j")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.card[open] ol').length === 2")
    assert texts(browser, ".card[open] .reward")[3:] == ["+0.05000", "+0.01000"]


def test_hostile_text_stays_text_and_nothing_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    bidi = "safe \u202egnp.exe"
    record = scored(0.1, -0.1, 0.1, id=HOSTILE, problem=HOSTILE, generator=HOSTILE)
    record["steps"] = [HOSTILE, bidi, "שלום 1 < 2 &amp; <b>"]
    show(browser, tmp_path, [record, {"id": HOSTILE, "error": {"code": "x", "message": HOSTILE}}])
    assert texts(browser, ".card[open] .step .text .text") == [
        *(HOSTILE, "safe \\u202egnp.exe", "שלום 1 < 2 &amp; <b>")
    ]
    assert ids(browser) == [HOSTILE, HOSTILE]
    assert browser.run("document.querySelectorAll('img, b, main script').length") == 0
    assert browser.run("document.title") == "scored.jsonl · stepscore"
    assert [address.partition("#")[0] for address in browser.requests()] == [
        (tmp_path / "report.html").as_uri()
    ]
    assert browser.complaints() == []


def test_the_policy_stops_what_would_load_something(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, RECORDS)
    refused = browser.run(
        "new Promise((done) => { addEventListener('securitypolicyviolation', (e) => "
        "done(e.violatedDirective)); const image = new Image(); "
        "image.src = 'http://127.0.0.1:9/i'; document.body.append(image); })"
    )
    assert refused == "img-src"


def test_ten_thousand_solutions_are_drawn_as_far_as_somebody_looks(browser: Browser, tmp_path: Path) -> None:
    many = [scored(0.001 * (index % 7), id=index) for index in range(10_000)]
    show(browser, tmp_path, many)
    assert texts(browser, "#count") == ["10,000 solutions"]
    first = browser.run("document.querySelectorAll('.card').length")
    assert first < 200
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"document.querySelectorAll('.card').length > {first}")


def test_of_many_steps_and_long_text_the_rest_comes_when_asked_for(browser: Browser, tmp_path: Path) -> None:
    record = scored(*[0.01] * 1000)
    record["steps"][0] = "\U0001f600" * 5000
    show(browser, tmp_path, [record])
    assert len(texts(browser, ".reward")) == 200
    assert browser.run("document.querySelectorAll('.strip i').length") <= 48
    (button,) = texts(browser, ".step button")
    assert button == "Show all 10,000 characters"
    browser.run("document.querySelector('.step button').click()")
    assert texts(browser, ".step .text .text")[0] == "\U0001f600" * 5000
    browser.run("document.querySelector('.actions button').click()")
    assert len(texts(browser, ".reward")) == 400


def test_tokens_are_shown_where_they_were_kept(browser: Browser, tmp_path: Path) -> None:
    pieces = ["<u>", "1 + 1?", "<a>", "1", " + 1 = 2", "\n\n", "So 2.", "<e>"]
    logprobs = {"policy_logprobs": [-1.0] * 7, "reference_logprobs": [-1.5] * 3 + [-0.5] * 4}
    show(browser, tmp_path, [scored(token_texts=pieces, response_start=3, step_ends=[4, 6], **logprobs)])
    browser.run("document.querySelector('.toggle').click()")
    assert texts(browser, ".tokens") == ["<u>1 + 1?<a>", "1 + 1 = 2⏎⏎\n", "So 2.<e>"]
    browser.run("document.querySelectorAll('.tokens')[1].focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('output').value") == (
        'token 4 " + 1 = 2": −0.5000 nats = policy −1.0000 − reference −0.5000'
    )
    assert browser.run("document.querySelector('.current').className") == "token negative current"


def test_a_narrow_page_does_not_scroll_sideways(browser: Browser, tmp_path: Path) -> None:
    browser.size(360, 700)
    record = scored(id="x" * 200, generator="y" * 190)
    record["steps"][0] = "z" * 2000
    show(browser, tmp_path, [record, *RECORDS])
    assert browser.run("document.documentElement.scrollWidth") <= 360
    browser.size(1100, 900)

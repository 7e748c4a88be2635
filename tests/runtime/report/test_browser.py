"""The report in a real browser: steps are drawn and coloured, sorted and filtered; text stays text."""

from __future__ import annotations

import pytest
from testing.browser import Browser
from testing.scored_records import scored
from testing.shown_report import ShownReport

from stepscore.cli.tables import suspicious_step
from stepscore.evaluation.first_error import processbench_f1

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


def test_steps_are_drawn_with_their_rewards_signed_and_coloured(
    browser: Browser, report: ShownReport
) -> None:
    report(RECORDS)
    assert report.texts(".card[open] .reward") == ["+0.02000", "−0.03000", "+0.01000"]
    assert report.texts(".card[open] .total") == ["+0.02000", "−0.01000", "0.00000"]
    colours = browser.run(
        "[...document.querySelectorAll('.card[open] .step:not(.head)')]"
        ".map((node) => getComputedStyle(node).backgroundColor)"
    )
    assert len(set(colours)) == 3  # no two rewards are equal
    assert browser.run("document.querySelectorAll('.card[open] .chart circle').length") == 4


@pytest.mark.parametrize("threshold", [None, 0.0, 0.015, -1.0])
def test_the_marked_step_is_the_one_that_score_marks(
    browser: Browser, report: ShownReport, threshold: float | None
) -> None:
    report(RECORDS, threshold=threshold)
    marked = browser.run(
        "[...document.querySelectorAll('.strip')].map((node) => "
        "[...node.children].findIndex((cell) => cell.classList.contains('marked')))"
    )
    assert marked == [suspicious_step(each["step_rewards"], threshold) for each in RECORDS[:3]]


def facts(report: ShownReport) -> dict[str, str]:
    return dict(zip(report.texts("#facts dt"), report.texts("#facts dd"), strict=True))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.015, -0.02, -1.0, 1.0])
def test_labels_are_judged_as_processbench_does(report: ShownReport, threshold: float | None) -> None:
    report(RECORDS, threshold=threshold)
    predictions = [suspicious_step(each["step_rewards"], threshold) for each in RECORDS[:3]]
    judged = processbench_f1(predictions, [each["label"] for each in RECORDS[:3]])
    found = facts(report)
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
    report: ShownReport, threshold: float | None, said: str | None
) -> None:
    report(RECORDS, threshold=threshold)
    found = facts(report)
    assert (said or "") in found.get("threshold", "")
    assert ("threshold" in found) == (said is not None)
    if said is not None and said.startswith("below"):
        assert found["F1 of first wrong steps"] == "0.0 %"
        assert "100.0 %" not in " ".join(found.values())


def test_right_solutions_alone_are_no_figure(report: ShownReport) -> None:
    report([RECORDS[1]], threshold=-1.0)
    assert not any("%" in value for name, value in facts(report).items() if name != "answers right")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", ["mixed", "good", "bad", "long"]),
        ("sort=step", ["bad", "mixed", "good", "long"]),
        ("sort=-step", ["good", "mixed", "bad", "long"]),
        ("sort=outcome", ["bad", "mixed", "good", "long"]),
        ("sort=-outcome", ["good", "mixed", "bad", "long"]),
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
    report: ShownReport, state: str, expected: list[str]
) -> None:
    report(RECORDS, state)
    assert report.ids() == expected


def test_controls_sort_and_filter_and_write_the_address(browser: Browser, report: ShownReport) -> None:
    report(RECORDS)
    browser.press("/")
    for key in "step 3":
        browser.press(key)
    browser.wait("location.hash === '#q=step+3'")
    assert report.ids() == ["mixed"]
    assert report.texts("#count") == ["1 of 4 solutions"]
    browser.run("document.querySelector('[type=reset]').click()")
    browser.wait("location.hash === ''")
    assert len(report.ids()) == 4


def test_keys_open_a_solution(browser: Browser, report: ShownReport) -> None:
    report(RECORDS)
    browser.press("j")
    browser.press("j")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.card[open] ol').length === 2")
    assert report.texts(".card[open] .reward")[3:] == ["+0.05000", "+0.01000"]


def test_hostile_text_stays_text_and_nothing_is_asked_for(browser: Browser, report: ShownReport) -> None:
    bidi = "safe \u202egnp.exe"
    record = scored(0.1, -0.1, 0.1, id=HOSTILE, problem=HOSTILE, generator=HOSTILE)
    record["steps"] = [HOSTILE, bidi, "שלום 1 < 2 &amp; <b>"]
    report([record, {"id": HOSTILE, "error": {"code": "x", "message": HOSTILE}}])
    assert report.texts(".card[open] .step .content > .text") == [
        *(HOSTILE, "safe \\u202egnp.exe", "שלום 1 < 2 &amp; <b>")
    ]
    assert report.ids() == [HOSTILE, HOSTILE]
    assert browser.run("document.querySelectorAll('img, b, main script').length") == 0
    assert browser.run("document.title") == "scored.jsonl · stepscore"
    assert [address.partition("#")[0] for address in browser.requests()] == [report.path.as_uri()]
    assert browser.complaints() == []


def test_the_policy_stops_what_would_load_something(browser: Browser, report: ShownReport) -> None:
    report(RECORDS)
    refused = browser.run(
        "new Promise((done) => { addEventListener('securitypolicyviolation', (e) => "
        "done(e.violatedDirective)); const image = new Image(); "
        "image.src = 'http://127.0.0.1:9/i'; document.body.append(image); })"
    )
    assert refused == "img-src"


def test_of_ten_thousand_solutions_only_those_near_the_window_are_drawn(
    browser: Browser, report: ShownReport
) -> None:
    report([scored(0.001 * (index % 7), id=index) for index in range(10_000)])
    assert report.texts("#count") == ["10,000 solutions"]
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.wait("[...document.querySelectorAll('.card bdi')].at(-1).textContent === '9999'")
    browser.wait("document.querySelectorAll('.card').length < 300")


def test_of_many_steps_and_long_text_the_rest_comes_when_asked_for(
    browser: Browser, report: ShownReport
) -> None:
    record = scored(*[0.01] * 1000)
    record["steps"][0] = "\U0001f600" * 5000
    report([record])
    assert len(report.texts(".reward")) == 200
    assert browser.run("document.querySelectorAll('.strip i').length") <= 48
    (button,) = report.texts(".step button")
    assert button == "Show all 10,000 characters"
    browser.run("document.querySelector('.step button').click()")
    assert report.texts(".step .content > .text")[0] == "\U0001f600" * 5000
    browser.run("document.querySelector('.actions button').click()")
    assert len(report.texts(".reward")) == 400


def test_tokens_are_shown_where_they_were_kept(browser: Browser, report: ShownReport) -> None:
    pieces = ["<u>", "1 + 1?", "<a>", "1", " + 1 = 2", "\n\n", "So 2.", "<e>"]
    logprobs = {"policy_logprobs": [-1.0] * 7, "reference_logprobs": [-1.5] * 3 + [-0.5] * 4}
    report([scored(token_texts=pieces, response_start=3, step_ends=[4, 6], **logprobs)])
    browser.run("document.querySelector('.toggle').click()")
    assert report.texts(".tokens") == ["<u>1 + 1?<a>", "1 + 1 = 2⏎⏎\n", "So 2.<e>"]
    browser.run("document.querySelectorAll('.tokens')[1].focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('.actions output').value") == (
        'token 4 " + 1 = 2": −0.5000 nats = policy −1.0000 − reference −0.5000'
    )
    assert browser.run("document.querySelector('.current').className") == "token negative current"

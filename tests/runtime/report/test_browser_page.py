"""The page as a whole in a real browser: text, files, printing, threshold, accessibility, widths."""

from __future__ import annotations

import base64
import json

import pytest
from testing.browser import Browser
from testing.scored_records import scored
from testing.shown_report import ShownReport

from stepscore.evaluation.first_error import first_error
from stepscore.report.page import Origin, Problem

pytestmark = pytest.mark.browser

SHOWN_TEXT = r"""**Step 1:** with \(\frac{1}{2}\), $x_1$ and
\[ \boxed{7} \]
- first \(a^2\)
- second, broken: \(\frac{1}{\)
"""


def rich() -> dict[str, object]:
    record = scored(0.1, -0.2, id="a", label=1, final_answer_correct=False, problem=r"What is $\sqrt{49}$?")
    record["steps"] = [SHOWN_TEXT, r"\begin{align*}a&=b\\c&=d\end{align*} Costs \$5, not $5 or $10."]
    return record


PROBLEMS = [Problem([0, 1], ["1", "2"], [[], []], [True, False], {"best-of-n": 1})]


def test_formulas_bold_and_lists_are_rendered_and_broken_latex_is_as_typed(report: ShownReport) -> None:
    report([rich()])
    assert report.count(".card[open] .content math") == 5
    assert report.count(".card[open] .content math[display=block]") == 2
    assert report.texts(".content .bold") == ["Step 1:"]
    assert [text.strip() for text in report.texts(".content .item")][1] == r"- second, broken: \(\frac{1}{\)"
    assert "Costs \\$5, not $5 or $10." in report.texts(".content > .text")[1]
    assert report.browser.run("document.querySelector('.content mfrac').getBoundingClientRect().height") > 20
    assert report.browser.complaints() == []


def test_origin_of_the_rewards_is_shown(report: ShownReport) -> None:
    origin = Origin("ab" * 32, "card", "0.001", "0.1.0", "2026-11-27T22:42:40.214Z")
    report([scored()], origin=origin)
    assert dict(zip(report.texts("#origin dt"), report.texts("#origin dd"), strict=True)) == {
        "file": "scored.jsonl",
        "pair": "abababababab",
        "beta": "0.001 per nat",
        "convention": "card",
        "stepscore": "0.1.0",
        "scored": "2026-11-27 22:42:40 UTC",
    }


def test_curve_is_saved_as_svg_and_png_without_a_request(browser: Browser, report: ShownReport) -> None:
    report([rich()])
    browser.prefer(prefers_color_scheme="dark")
    browser.run("URL.createObjectURL = (blob) => { (window.saved ??= []).push(blob); return '#saved'; }")
    browser.run("document.querySelectorAll('.files button').forEach((each) => each.click())")
    browser.wait("window.saved?.length === 2")
    svg = browser.run("window.saved.find((blob) => blob.type === 'image/svg+xml').text()")
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "var(" not in svg
    assert "rgb(28, 33, 38)" in svg  # the ink of the light theme
    assert "+0.1000" in svg
    png = browser.run(
        "window.saved.find((blob) => blob.type === 'image/png').arrayBuffer()"
        ".then((data) => btoa(String.fromCharCode(...new Uint8Array(data))))"
    )
    assert base64.b64decode(png).startswith(b"\x89PNG\r\n")
    assert len(browser.requests()) == 1
    assert browser.complaints() == []


def test_printing_prints_what_is_open_completely(browser: Browser, report: ShownReport) -> None:
    long = scored(*[0.001] * 300, id="long")
    long["steps"][0] = "y" * 5000
    report([*(scored(0.1, id=k) for k in range(100)), long, scored(0.2, id="shut")])
    browser.run("document.querySelector('[data-at=\"3\"]').open = true")
    browser.run("location.hash = '#id=long'")
    browser.wait("document.activeElement.textContent.startsWith('long')")
    browser.run(
        "addEventListener('beforeprint', () => { window.printed = ["
        "[...document.querySelectorAll('.card bdi')].map((node) => node.textContent), "
        "document.querySelectorAll('.step:not(.head)').length, "
        "document.body.textContent.includes('y'.repeat(5000)), "
        "document.querySelectorAll('.card .body').length]; })"
    )
    pages = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pages.startswith(b"%PDF")
    assert browser.run("window.printed") == [["0", "3", "long"], 302, True, 3]
    browser.wait("document.querySelectorAll('.card').length > 20")  # as it was


def test_slider_shows_precision_and_recall_of_first_errors(browser: Browser, report: ShownReport) -> None:
    records = [
        scored(0.02, -0.03, 0.01, id=1, label=1),
        scored(-0.01, -0.06, id=2, label=1),
        scored(0.05, 0.01, id=3, label=-1),
        scored(0.05, -0.04, id=4, label=-1),
    ]
    report(records)
    for rank in (0, 130, 200, 400):
        browser.run(f"slider.value = {rank}; slider.dispatchEvent(new Event('input', {{bubbles: true}}))")
        threshold = float(browser.run("document.forms[0].elements.threshold.value"))
        marked = [first_error(each["step_rewards"], threshold) for each in records]
        hits = sum(step == each["label"] >= 0 for step, each in zip(marked, records, strict=True))
        some = sum(step >= 0 for step in marked)
        precision = f"precision {100 * hits / some:.1f} % of {some} marked" if some else "no step marked"
        assert report.texts("#judged") == [f"{precision} · recall {100 * hits / 2:.1f} % of 2 wrong"]
    browser.wait("location.hash.startsWith('#threshold=')")


CONTRAST = """
(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const mixed = (colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, style, noscript, svg")) continue;
    const backs = [];
    for (let at = node; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
    const [one, other] = [light(mixed(backs)), light(mixed([...backs, getComputedStyle(node).color]))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) low.push([node.className, node.textContent.slice(0, 30), ratio]);
  }
  return low;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5(browser: Browser, report: ShownReport, scheme: str) -> None:
    browser.prefer(prefers_color_scheme=scheme)
    report([rich(), {**rich(), "id": "b"}, {"id": 7, "error": {"code": "too_long", "message": "m"}}])
    browser.run("document.querySelector('#open').click()")
    assert browser.run(CONTRAST) == []
    report([rich(), {**rich(), "id": "b"}], "view=problems", problems=PROBLEMS)
    assert browser.run(CONTRAST) == []


def test_everything_to_use_has_a_name_for_a_screen_reader(browser: Browser, report: ShownReport) -> None:
    report([rich(), {**rich(), "id": "b"}], "view=problems", problems=PROBLEMS)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    used = {"button", "checkbox", "slider", "textbox", "searchbox", "spinbutton", "combobox", "link", "image"}
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if node.get("role", {}).get("value") in used
    ]
    assert {role for role, _ in named} >= {
        "button",
        "checkbox",
        "slider",
        "searchbox",
        "combobox",
        "link",
        "image",
    }
    assert [pair for pair in named if not pair[1].strip()] == []
    roles = {node.get("role", {}).get("value") for node in nodes}
    assert {"main", "form", "table", "columnheader", "rowheader", "status"} <= roles


def test_tab_goes_through_the_page_in_the_order_of_the_document(
    browser: Browser, report: ShownReport
) -> None:
    report([rich(), {**rich(), "id": "b"}], "view=problems", problems=PROBLEMS)
    order = []
    for _ in range(22):
        browser.press("Tab")
        order.append(browser.run("document.activeElement.name || document.activeElement.localName"))
    assert order[:3] == ["q", "view", "sort"]
    assert {"summary", "a"} <= set(order)
    assert browser.run("[...document.querySelectorAll('[tabindex]')].every((node) => node.tabIndex <= 0)")


@pytest.mark.parametrize(("width", "medium"), [(1100, "screen"), (360, "screen"), (720, "print")])
def test_the_page_does_not_scroll_sideways(
    browser: Browser, report: ShownReport, width: int, medium: str
) -> None:
    browser.size(width, 700)
    record = {**rich(), "id": "x" * 200, "generator": "y" * 190}
    record["steps"] = ["z" * 2000, r"\[" + "x+" * 300 + r"1\]"]
    for state in ("view=problems", "view=solutions"):
        report([record, rich()], state, problems=PROBLEMS)
        browser.call("Emulation.setEmulatedMedia", media=medium)
        assert browser.run("document.documentElement.scrollWidth") <= width, json.dumps(state)
    browser.call("Emulation.setEmulatedMedia", media="")

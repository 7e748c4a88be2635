"""The HTML page: records, script and style in one self-contained file.

static/report.html, report.css and the scripts are merged with the records as JSON. The page's content
security policy allows this script and this style, by hash, and no request at all. Texts of a record are JSON
in an inert block, with `<` written `\\u003c`, and the script sets them as text, so none of them can become
markup; formulas are trees of MathML elements that it builds one by one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

import msgspec

from stepscore.report.formulas import Tree
from stepscore.report.solutions import ReportRecord

GENERATOR = '<meta name="generator" content="stepscore report">'
"""Marks a file as a report, which a later report may replace."""


SCRIPTS = (
    *("dom", "data", "text", "chart", "download", "steps", "card", "problem", "compare"),
    *("list", "filters", "figures", "printing", "report"),
)
"""Scripts of the page, in the order in which they are joined: each uses what stands before it."""


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Origin of the rewards, as far as it is known: a fingerprint of the pair, ISO 8601, a version."""

    pair: str | None = None
    convention: str | None = None
    beta: str | None = None
    version: str | None = None
    date: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Samples of one problem, as indices of records, and the sample that each method selects.

    `answers` and `correct` are per sample, empty where they are unknown; equal answers are the same text.
    `answer_spans` are those of each answer (`report.markup`). `fault` says why nothing is selected.
    """

    samples: list[int]
    answers: list[str | None] = []
    answer_spans: list[list[int]] = []
    correct: list[bool] = []
    selected: dict[str, int] = {}
    fault: str | None = None


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Data that the script draws."""

    source: str
    records: list[ReportRecord]
    origin: Origin = Origin()
    threshold: float | None = None
    formulas: list[Tree] = []
    problems: list[Problem] = []
    """Problems of several samples."""
    notes: list[str] = []
    """Remarks on how samples were compared."""


def render(page: Page) -> str:
    """Return the page as HTML.

    >>> from stepscore.jobs.schema import LineError
    >>> text = render(Page("a.jsonl", [ReportRecord(1, LineError("no_steps", "</script><img src=x>"))]))
    >>> "<img" in text, text.count("</script>")
    (False, 2)
    """
    style = _file("report.css")
    script = '"use strict";\n{\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "}\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": inert_json(page)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("report.html"))


def inert_json(page: Page) -> str:
    """Return the page's JSON without a `<`: no text in it can close its script element or open a comment.

    >>> inert_json(Page("<!--", []))
    '{"source":"\\\\u003c!--","records":[]}'
    """
    return msgspec.json.encode(page).decode().replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files("stepscore.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""The HTML page: records, script and style in one self-contained file.

static/report.html, .css and .js are merged with the records as JSON. The page's content security policy
allows this script and this style, by hash, and no request at all. Texts of a record are JSON in an inert
block, with `<` written `\\u003c`, and the script sets them as text, so none of them can become markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

import msgspec

from stepscore.report.solutions import ReportRecord

GENERATOR = '<meta name="generator" content="stepscore report">'
"""Marks a file as a report, which a later report may replace."""


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Data that the script draws; convention and beta where they are known."""

    source: str
    records: list[ReportRecord]
    convention: str | None = None
    beta: str | None = None
    threshold: float | None = None


def render(page: Page) -> str:
    """Return the page as HTML.

    >>> from stepscore.jobs.schema import LineError
    >>> text = render(Page("a.jsonl", [ReportRecord(1, LineError("no_steps", "</script><img src=x>"))]))
    >>> "<img" in text, text.count("</script>")
    (False, 2)
    """
    style, script = _file("report.css"), _file("report.js")
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

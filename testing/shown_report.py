"""The report of some records, in a browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testing.browser import Browser

from stepscore.report.formulas import Formulas
from stepscore.report.page import Page, render
from stepscore.report.solutions import solutions


class ShownReport:
    """The report of the last records that were shown."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.browser = browser
        self.path = path

    def __call__(self, records: Sequence[dict[str, Any]], state: str = "", **page: Any) -> None:
        formulas = Formulas()
        found = solutions((json.dumps(record).encode() for record in records), formulas)
        html = render(Page("scored.jsonl", found, formulas=formulas.trees, **page))
        self.path.write_text(html, encoding="utf-8")
        self.browser.open(f"{self.path.as_uri()}#{state}")

    def texts(self, selector: str) -> list[str]:
        found = f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)"
        return list(self.browser.run(found))

    def ids(self) -> list[str]:
        return self.texts(".card bdi")

    def count(self, selector: str) -> int:
        return int(self.browser.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

"""A browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.browser import Browser, find
from testing.shown_report import ShownReport


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no chromium on this machine: `make browser` installs it")
    with Browser(program) as browser:
        yield browser


@pytest.fixture
def report(browser: Browser, tmp_path: Path) -> ShownReport:
    browser.size(1100, 900)
    browser.prefer(prefers_color_scheme="light")
    return ShownReport(browser, tmp_path / "report.html")

"""What holds for tests of every folder: how many examples Hypothesis tries, and which files are imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.hypothesis_profiles import load_profile
from testing.optimum_pairs import why_not

load_profile()

PARITY_TESTS = Path(__file__).parent / "parity_tests"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out unread what `-m "not torch"` deselects: importing PyTorch takes longer than most tests."""
    if "not torch" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    if PARITY_TESTS in collection_path.parents:
        return True
    text = collection_path.read_text(encoding="utf-8")
    return True if re.search(r"^pytestmark = .*\bmark\.torch\b", text, re.MULTILINE) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of optimum where it cannot be used, before a fixture tries to."""
    if item.get_closest_marker("optimum") and (reason := why_not()):
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _templates_rendered_once() -> Iterator[None]:
    from testing.templates import rendered_once  # noqa: PLC0415 - the process that only hands tests out needs none

    with rendered_once():
        yield

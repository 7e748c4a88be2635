"""Session-wide fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from parity_tests.support.pair_cache import Workshop


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from a second thread, and lose much beside other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path_factory.mktemp("parity"))
    yield workshop
    workshop.close()

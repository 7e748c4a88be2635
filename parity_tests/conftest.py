"""What parity tests share. All of them are marked torch; PyTorch is imported when the first one runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from testing.shared_folder import SharedFolder

if TYPE_CHECKING:
    from parity_tests.support.pair_cache import Workshop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(__file__.removesuffix("conftest.py")):
            item.add_marker(pytest.mark.torch)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from a second thread, and lose much beside other work."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    from parity_tests.support.pair_cache import Workshop  # noqa: PLC0415

    workshop = Workshop(SharedFolder.of_this_run(tmp_path_factory).path)
    yield workshop
    workshop.close()

"""The bundled pair at two precisions, exported once a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.pairs import Checkpoints, PairOf
from testing.parity_command import POLICY, REFERENCE
from testing.shared_folder import SharedFolder

from stepscore.enums import Activations, Precision
from stepscore_export.options import ExportOptions


@pytest.fixture(scope="module")
def one_thread() -> None:
    """Models this small gain nothing from a second thread, and lose much beside other work."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundled_pair_of(shared_folder: SharedFolder) -> PairOf:
    return PairOf(Checkpoints(POLICY, REFERENCE), shared_folder)


@pytest.fixture(scope="session")
def int8(bundled_pair_of: PairOf) -> Path:
    return bundled_pair_of.form(ExportOptions(Precision.INT8, activations=Activations.EXACT))


@pytest.fixture(scope="session")
def fp32(bundled_pair_of: PairOf) -> Path:
    return bundled_pair_of.form(ExportOptions(Precision.FP32))

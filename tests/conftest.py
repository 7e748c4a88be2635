"""What many tests share, made once a session: two tiny checkpoints and the pairs exported from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from testing.checkpoints import write_checkpoint

from stepscore.engine.ort.provider_checks import require
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Coding, Precision, Provider, Target
from stepscore.errors import StepscoreError
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair

settings.register_profile("stepscore", deadline=None)  # no test passes or fails by the clock
settings.load_profile("stepscore")

PairOf = Callable[..., Path]


@dataclass(frozen=True)
class Checkpoints:
    """A random reference and the policy: the same weights plus a difference of 1 %."""

    policy: Path
    reference: Path


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    folder = tmp_path_factory.mktemp("checkpoints")
    return Checkpoints(
        policy=write_checkpoint(folder / "policy", seed=1, perturb=0.01),
        reference=write_checkpoint(folder / "reference", seed=1),
    )


@pytest.fixture(scope="session")
def pair_of(tiny_checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> PairOf:
    """pair_of(precision, target): a folder nobody may write to; exported at the first request.

    Models are coded independently unless asked otherwise: pair_of(precision, coding=Coding.DIFFERENCE).
    """
    folder = tmp_path_factory.mktemp("pairs")

    @cache
    def exported(options: ExportOptions) -> Path:
        models, output = tiny_checkpoints, folder / str(len(list(folder.iterdir())))
        return export_pair(models.policy, models.reference, output, options).path

    def pair_of(precision: Precision = Precision.FP32, target: Target = Target.CPU, **other: Any) -> Path:
        options = {"coding": Coding.INDEPENDENT} | other
        return exported(ExportOptions(precision=precision, target=target, **options))

    return pair_of


@pytest.fixture(scope="session")
def tiny_pair(pair_of: PairOf) -> Path:
    """The fp32 pair for the CPU."""
    return pair_of()


@pytest.fixture
def pair_copy(tiny_pair: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pair to damage."""
    return shutil.copytree(tiny_pair, tmp_path / "pair")


@pytest.fixture(scope="session")
def cuda(pair_of: PairOf) -> Provider:
    """Skip unless a session really starts on CUDA."""
    try:
        require(Provider.CUDA)
        Sessions(Provider.CUDA).open(pair_of(Precision.FP16, Target.CUDA) / "policy" / "head.onnx")
    except StepscoreError as error:
        pytest.skip(f"no CUDA: {error}")
    return Provider.CUDA

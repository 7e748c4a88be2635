"""What many tests share, made once a run: two tiny checkpoints and the pairs exported from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.pair_files import write_torch_pair
from testing.pairs import Checkpoints, PairOf
from testing.shared_folder import SharedFolder

from stepscore.artifact.pair import Pair
from stepscore.engine import open_engine
from stepscore.engine.base import Engine
from stepscore.engine.ort.provider_checks import require
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Precision, Provider, Target
from stepscore.errors import StepscoreError


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """What several processes of a run make once, and read."""
    return SharedFolder.of_this_run(tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_checkpoints(shared_folder: SharedFolder) -> Checkpoints:
    return Checkpoints.at(shared_folder.once("checkpoints", Checkpoints.write))


@pytest.fixture(scope="session")
def pair_of(tiny_checkpoints: Checkpoints, shared_folder: SharedFolder) -> PairOf:
    """pair_of(precision, target): a folder nobody may write to; exported at the first request."""
    return PairOf(tiny_checkpoints, shared_folder)


@pytest.fixture(scope="session")
def identical_pair_of(tiny_checkpoints: Checkpoints, shared_folder: SharedFolder) -> PairOf:
    """Pairs whose policy is the reference."""
    model = tiny_checkpoints.reference
    return PairOf(Checkpoints(model, model), shared_folder)


@pytest.fixture(scope="session")
def tiny_pair(pair_of: PairOf) -> Path:
    """The fp32 pair for the CPU."""
    return pair_of()


@pytest.fixture(scope="session")
def tiny_engine(tiny_pair: Path) -> Iterator[Engine]:
    """The tiny pair in memory, for scorers that are cut in another way."""
    engine = open_engine(Pair.open(tiny_pair))
    yield engine
    engine.close()


@pytest.fixture
def pair_copy(tiny_pair: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pair to damage."""
    return shutil.copytree(tiny_pair, tmp_path / "pair")


@pytest.fixture
def torch_pair(tiny_pair: Path, tmp_path: Path) -> Path:
    """A pair of the format bitsandbytes whose models nobody loads."""
    return write_torch_pair(tmp_path / "torch", tiny_pair)


@pytest.fixture(scope="session")
def cuda(pair_of: PairOf) -> Provider:
    """Skip unless a session really starts on CUDA."""
    try:
        require(Provider.CUDA)
        Sessions(Provider.CUDA).open(pair_of(Precision.FP16, Target.CUDA) / "policy" / "head_tile.onnx")
    except StepscoreError as error:
        pytest.skip(f"no CUDA: {error}")
    return Provider.CUDA

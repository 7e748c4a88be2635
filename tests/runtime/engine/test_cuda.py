"""The CUDA provider itself: needs a GPU, skips without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from testing.checkpoints import TINY, write_checkpoint
from testing.cuda_forms import CUDA_FORMS, LOSSLESS
from testing.pairs import PairOf, export_unmeasured

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.engine import open_engine
from stepscore.engine.base import EngineOptions
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.ort import sessions as provider_module
from stepscore.engine.ort.sessions import CUDA
from stepscore.enums import Provider, Residency
from stepscore.memory.settings import residencies

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cuda")]


@pytest.fixture(scope="module", params=list(CUDA_FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(pair_of: PairOf, form: str) -> Path:
    return pair_of.form(CUDA_FORMS[form][0])


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(5)
    return pack([random.integers(0, TINY.vocab_size, length) for length in (40, 7, 133, 2)], [0, 0, 50, 0])


@pytest.fixture(scope="module")
def truth(tiny_pair: Path, batch: Batch) -> NDArray[np.float32]:
    (logprobs,) = open_engine(Pair.open(tiny_pair)).run([batch])
    return np.concatenate([logprobs["policy"], logprobs["reference"]])


def run_on_cuda(pair: Path, batch: Batch, **options: Any) -> NDArray[np.float32]:
    engine = CudaEngine(Pair.open(pair), EngineOptions(provider=Provider.CUDA, **options))
    (logprobs,) = engine.run([batch])
    engine.close()
    return np.concatenate([logprobs["policy"], logprobs["reference"]])


def test_cuda_gives_the_numbers_of_the_cpu(
    pair: Path, batch: Batch, truth: NDArray[np.float32], form: str
) -> None:
    assert np.abs(run_on_cuda(pair, batch) - truth).max() < CUDA_FORMS[form][1]


def test_residencies_agree(pair: Path, batch: Batch) -> None:
    """The same kernels over the same weights, wherever these were."""
    resident, *others = (
        run_on_cuda(pair, batch, residency=which, resident_stages=2)
        for which in residencies(Pair.open(pair).manifest)
    )
    assert all(np.array_equal(resident, other) for other in others)


@pytest.mark.parametrize("residency", [Residency.RESIDENT, Residency.STREAM])
def test_a_lossless_pair_gives_the_bits_of_two_models(
    batch: Batch, tmp_path: Path, residency: Residency
) -> None:
    """Its kernel is compiled here."""
    policy = write_checkpoint(tmp_path / "policy", seed=1, perturb=0.003, dtype="bfloat16")
    reference = write_checkpoint(tmp_path / "reference", seed=1, dtype="bfloat16")
    coded, whole = (
        export_unmeasured(policy, reference, tmp_path / name, options).path
        for name, options in (("coded", LOSSLESS), ("whole", CUDA_FORMS["bf16"][0]))
    )
    assert np.array_equal(*(run_on_cuda(each, batch, residency=residency) for each in (coded, whole)))


def test_hidden_rows_come_as_floats_that_numpy_has(pair: Path, batch: Batch) -> None:
    hidden, _ = CudaEngine(Pair.open(pair)).trace(batch)
    for rows in hidden.values():
        assert np.isfinite(rows.astype(np.float32)).all()


def test_every_node_but_copies_runs_on_cuda(
    pair: Path, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from ONNX Runtime's profile of the sessions that the engine opens on the GPU."""
    monkeypatch.chdir(tmp_path)
    create = ort.InferenceSession
    opened: list[ort.InferenceSession] = []

    def profiled(source: str, options: ort.SessionOptions, **keywords: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        session = create(source, options, **keywords)
        if session.get_providers()[0] == CUDA:
            opened.append(session)
        return session

    monkeypatch.setattr(provider_module.ort, "InferenceSession", profiled)
    run_on_cuda(pair, batch)
    ran = {
        (event["args"]["op_name"], event["args"]["provider"])
        for session in opened
        for event in json.loads(Path(session.end_profiling()).read_text())
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    }
    assert ran
    assert {kind for kind, where in ran if where != CUDA} <= {"MemcpyToHost", "MemcpyFromHost"}


def test_attention_is_fused(
    pair: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The unfused path overflows in fp16; ONNX Runtime prints which it took."""
    monkeypatch.setenv("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO", "1")
    run_on_cuda(pair, batch)
    printed = capfd.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "SdpaKernel=" in line]
    assert lines
    assert all("MATH" not in line for line in lines)


@pytest.mark.parametrize(("limit", "fits"), [("1GB", False), ("3GB", True)])
def test_a_memory_limit_is_honoured(pair_of: PairOf, limit: str, fits: bool) -> None:
    """What CUDA takes by itself included."""
    question = ["--problem", "p", "--step", "s", "--memory-limit", limit]
    command = [sys.executable, "-c", "from stepscore.cli.main import main; main()", "score"]
    pair = str(pair_of.form(CUDA_FORMS["fp16"][0]))
    done = subprocess.run([*command, pair, *question], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "the limit is 1.00 GB" in done.stderr

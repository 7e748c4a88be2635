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
from testing.checkpoints import TINY
from testing.pairs import PairOf

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort import sessions as provider_module
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.sessions import CUDA
from stepscore.enums import Coding, DifferencePrecision, Precision, Products, Provider, Residency, Target

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cuda")]

CODED = {"coding": Coding.DIFFERENCE, "precision": Precision.INT8}
FORMS: dict[str, tuple[dict[str, Any], float]] = {  # and the largest error of a log-prob
    "fp16": ({"precision": Precision.FP16}, 0.02),
    "bf16": ({"precision": Precision.BF16}, 0.15),
    "int8": ({"precision": Precision.INT8}, 0.3),
    "int4": ({"precision": Precision.INT4}, 2.0),
    "merged": ({**CODED, "products": Products.MERGED}, 0.3),
    "separate": ({**CODED, "products": Products.SEPARATE}, 0.3),
    "int8 difference": ({**CODED, "difference_precision": DifferencePrecision.INT8}, 0.3),
    "int4 base": ({**CODED, "precision": Precision.INT4}, 2.0),
    "blocks of 64": ({**CODED, "block_size": 64}, 0.3),
}


@pytest.fixture(scope="module", params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(pair_of: PairOf, form: str) -> Path:
    return pair_of(target=Target.CUDA, **FORMS[form][0])


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(5)
    return pack([random.integers(0, TINY.vocab_size, length) for length in (40, 7, 133, 2)], [0, 0, 50, 0])


@pytest.fixture(scope="module")
def truth(tiny_pair: Path, batch: Batch) -> NDArray[np.float32]:
    (logprobs,) = OrtEngine(Pair.open(tiny_pair)).run([batch])
    return np.concatenate([logprobs["policy"], logprobs["reference"]])


def run_on_cuda(pair: Path, batch: Batch, **options: Any) -> NDArray[np.float32]:
    engine = OrtEngine(Pair.open(pair), EngineOptions(provider=Provider.CUDA, **options))
    (logprobs,) = engine.run([batch])
    return np.concatenate([logprobs["policy"], logprobs["reference"]])


def test_cuda_gives_the_numbers_of_the_cpu(
    pair: Path, batch: Batch, truth: NDArray[np.float32], form: str
) -> None:
    assert np.abs(run_on_cuda(pair, batch) - truth).max() < FORMS[form][1]


def test_residencies_agree(pair: Path, batch: Batch) -> None:
    resident, *others = (run_on_cuda(pair, batch, residency=which) for which in Residency)
    assert all(np.abs(resident - other).max() < 0.05 for other in others)


def test_hidden_rows_come_as_floats_that_numpy_has(pair: Path, batch: Batch) -> None:
    hidden, _ = OrtEngine(Pair.open(pair)).trace(batch)
    for rows in hidden.values():
        assert np.isfinite(rows.astype(np.float32)).all()


def test_every_node_but_copies_runs_on_cuda(
    pair: Path, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from ONNX Runtime's profile of the sessions that the engine opens."""
    monkeypatch.chdir(tmp_path)
    create = ort.InferenceSession
    opened: list[ort.InferenceSession] = []

    def profiled(source: str, options: ort.SessionOptions, **keywords: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        opened.append(create(source, options, **keywords))
        return opened[-1]

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
    """What CUDA takes by itself included. In a process of its own: the limit belongs to the process."""
    question = ["--problem", "p", "--step", "s", "--memory-limit", limit]
    command = [sys.executable, "-c", "from stepscore.cli.main import main; main()", "score"]
    pair = str(pair_of(Precision.FP16, Target.CUDA))
    done = subprocess.run([*command, pair, *question], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == fits, done.stderr
    assert fits or "the limit is 1.00 GB" in done.stderr

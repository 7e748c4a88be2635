"""What scoring takes of a GPU, and its limit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from testing.manifests import manifest, total

from stepscore.artifact.graph_contract import BODY, HEAD, layer_file
from stepscore.enums import Residency, Target
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.gpu import check_gpu_limit
from stepscore.memory.settings import CUDA_BATCH_TOKENS


def test_a_pair_for_cuda_is_resident_whatever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: 0)
    settings = fit_settings(manifest(target=Target.CUDA))
    assert (settings.residency, settings.max_batch_tokens) == (Residency.RESIDENT, CUDA_BATCH_TOKENS)
    assert not settings.materializes_scores


def test_a_gpu_holds_weights_once_and_batches_in_16_bits() -> None:
    """What was measured on an H200 (benchmarks/results/gpu_h200.json), two fp16 models of 7.6B."""
    weights = 2 * 2 * 7_615_616_512
    pair = manifest(target=Target.CUDA)
    for rows, measured in ((1024, 32_549), (4096, 33_685), (8192, 35_220)):
        settings = fit_settings(pair, max_batch_tokens=rows)
        found = estimate(pair, settings)
        others = found.total - found.weights + weights  # the pair of this test has no attention
        assert others / 1e6 == pytest.approx(measured, rel=0.02)


def test_a_limit_of_a_gpus_memory_chooses_the_residency() -> None:
    pair = manifest(target=Target.CUDA)
    needs = [total(pair, each, 1024) for each in (Residency.RESIDENT, Residency.STREAM)]
    assert needs[0] > needs[1]
    settings = fit_settings(pair, memory_limit=sum(needs) // 2)
    assert settings.residency is not Residency.RESIDENT
    with pytest.raises(DoesNotFit):
        fit_settings(pair, memory_limit=1 << 20)


@pytest.mark.parametrize("residency", [Residency.RESIDENT, Residency.ALTERNATE, Residency.STREAM])
def test_gpu_limit_below_weight_size_is_rejected(residency: Residency) -> None:
    pair = manifest(target=Target.CUDA)
    extents = [unit.extents for unit in pair.units]
    weights = {
        Residency.RESIDENT: sum(each[BODY].size + each[HEAD].size for each in extents),
        Residency.ALTERNATE: extents[0][BODY].size + extents[0][HEAD].size,
        Residency.STREAM: 2 * extents[0][layer_file(0)].size,
    }[residency]
    check_gpu_limit(pair, residency, weights + 1)
    with pytest.raises(DoesNotFit, match="the weights need") as caught:
        check_gpu_limit(pair, residency, weights)
    assert f"the limit is {weights / 1e9:.2f} GB" in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "holds"), [(1_000, False), (900_000, False), (1_200_000, True), (40_000_000, False)]
)
def test_onnxruntime_arena_keeps_a_limit_above_weight_size(limit: int, holds: bool) -> None:
    """Weights of 1 MB, arrays of 4 MB, on the CPU: all providers have the same arena. One a process."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == holds, done.stderr
    assert ("Available memory of" in done.stderr) == holds


LIMITED = """
import sys
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
arena = ort.OrtArenaCfg({"max_mem": int(sys.argv[1]), "arena_extend_strategy": 1})
ort.create_and_register_allocator(memory, arena)
rows = [None, 512]
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["b"]), helper.make_node("Softmax", ["b"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, rows)],
    [numpy_helper.from_array(np.ones((512, 512), np.float32), "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
options = ort.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
options.add_session_config_entry("session.disable_prepacking", "1")
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((2048, 512), np.float32)})
"""

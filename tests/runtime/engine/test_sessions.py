"""Where graphs run: on what was asked for, or not at all.

Nothing here needs a GPU (test_cuda.py does): what is needed is pretended.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from testing.forms import every_residency
from testing.pairs import PairOf

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort import provider_checks
from stepscore.engine.ort import sessions as provider_module
from stepscore.engine.ort.binding import as_numpy
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.provider_checks import (
    INTEGER_MODEL,
    UNSIGNED_MODEL,
    largest_products,
    needs_unsigned_weights,
    require,
    resolve,
)
from stepscore.engine.ort.sessions import CPU, CUDA, Sessions, naming_faults
from stepscore.enums import Activations, Coding, Precision, Provider, Residency, Target
from stepscore.errors import DoesNotFit, PairIncompatible, ProviderUnavailable, RunFailed
from stepscore.scorer import Scorer

HAS_CUDA = CUDA in ort.get_available_providers()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")


# Which provider


@pytest.mark.parametrize("target", Target)
def test_auto_is_the_provider_the_pair_was_exported_for(target: Target) -> None:
    assert resolve(Provider.AUTO, target).value == target.value


@pytest.mark.parametrize(("provider", "target"), [(Provider.CPU, Target.CUDA), (Provider.CUDA, Target.CPU)])
def test_a_pair_does_not_run_on_another_provider(provider: Provider, target: Target) -> None:
    with pytest.raises(PairIncompatible, match=f"exported for {target}"):
        resolve(provider, target)


def test_a_cuda_pair_runs_on_the_cpu_where_that_is_asked_for(pair_of: PairOf) -> None:
    with Scorer.load(pair_of(Precision.FP16, Target.CUDA), provider="cpu") as scorer:
        assert scorer.provider is Provider.CPU


@without_cuda
@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_cuda_pair_without_cuda_is_refused_naming_what_is_missing(pair_of: PairOf, provider: str) -> None:
    with pytest.raises(ProviderUnavailable, match=CUDA) as refusal:
        Scorer.load(pair_of(Precision.FP16, Target.CUDA), provider=provider)
    assert refusal.value.hint is not None
    assert "stepscore[cuda]" in refusal.value.hint


@without_cuda
def test_command_line_rejects_a_cuda_pair_without_cuda(pair_of: PairOf) -> None:
    pair = pair_of(Precision.FP16, Target.CUDA)
    result = CliRunner().invoke(
        main, ["score", str(pair), "--provider", "cuda", "--problem", "p", "--step", "s"]
    )
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr


# Products of 8-bit integers


def exact(depth: int) -> NDArray[np.float32]:
    return np.full((8, 32), depth * 255 * 127, np.float32)


def saturated(depth: int, *, unsigned: bool) -> NDArray[np.float32]:
    """Sums of two products that end at 32,767, whatever the weights are."""
    return np.full((8, 32), depth // 2 * 32767, np.float32)


def saturated_if_signed(depth: int, *, unsigned: bool) -> NDArray[np.float32]:
    """What a CPU without VNNI gives."""
    return exact(depth) if unsigned else saturated(depth, unsigned=False)


@pytest.mark.parametrize("depth", [2, 64, 1000])
def test_integer_matmul_is_exact_on_this_machine(depth: int) -> None:
    unsigned = needs_unsigned_weights()
    assert np.array_equal(largest_products(depth, unsigned=unsigned), exact(depth))


def test_unsigned_weights_are_used_if_signed_ones_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_checks, "largest_products", saturated_if_signed)
    assert needs_unsigned_weights()
    monkeypatch.setattr(provider_checks, "largest_products", lambda depth, **_: exact(depth))
    assert not needs_unsigned_weights()


def test_saturating_integer_matmul_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_checks, "largest_products", saturated)
    with pytest.raises(ProviderUnavailable, match="8-bit integer GEMM saturates") as refusal:
        needs_unsigned_weights()
    assert refusal.value.hint == "export the pair with --activations exact"


@every_residency
def test_int8_activations_are_rejected_on_saturating_cpus(
    pair_of: PairOf, monkeypatch: pytest.MonkeyPatch, residency: Residency
) -> None:
    pair = pair_of(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)
    OrtEngine(Pair.open(pair), EngineOptions(residency=residency)).close()
    monkeypatch.setattr(provider_checks, "largest_products", saturated)
    with pytest.raises(ProviderUnavailable, match="saturates"):
        OrtEngine(Pair.open(pair), EngineOptions(residency=residency))
    with pytest.raises(ProviderUnavailable, match="saturates"):
        Scorer.load(pair)


@pytest.mark.slow
@pytest.mark.parametrize("coding", [Coding.DIFFERENCE, Coding.INDEPENDENT])
def test_saturation_does_not_concern_exact_activations(
    pair_of: PairOf, monkeypatch: pytest.MonkeyPatch, coding: Coding
) -> None:
    monkeypatch.setattr(provider_checks, "largest_products", saturated)
    OrtEngine(Pair.open(pair_of(Precision.INT8, coding=coding, activations=Activations.EXACT))).close()


@pytest.mark.parametrize(
    ("model", "weights"), [(INTEGER_MODEL, onnx.TensorProto.INT8), (UNSIGNED_MODEL, onnx.TensorProto.UINT8)]
)
def test_the_integer_model_is_one_product(model: bytes, weights: int) -> None:
    graph = onnx.load_from_string(model).graph
    assert [(node.domain, node.op_type) for node in graph.node] == [("com.microsoft", "MatMulIntegerToFloat")]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    assert types == {"a": uint8, "b": weights, "s": float32, "z": uint8, "w": weights}


# Sessions, with a session that only takes notes


class FakeSession:
    """What InferenceSession was asked for; `active` is what it says it runs on."""

    active = (CUDA, CPU)
    arenas: ClassVar[list[Any]] = []

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
        self.path, self.options, self.asked = path, options, providers

    def get_providers(self) -> list[str]:
        return list(self.active)


@pytest.fixture
def fake_sessions(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    monkeypatch.setattr(provider_module.ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(FakeSession, "active", FakeSession.active)
    monkeypatch.setattr(FakeSession, "arenas", [])
    arena = cache(provider_module._share_device_arena.__wrapped__)  # registered anew in each test
    monkeypatch.setattr(provider_module, "_share_device_arena", arena)
    monkeypatch.setattr(
        provider_module.ort,
        "create_and_register_allocator_v2",
        lambda *given: FakeSession.arenas.append(given),
    )
    return FakeSession


def test_a_silent_fallback_to_the_cpu_is_an_error(fake_sessions: type[FakeSession]) -> None:
    fake_sessions.active = (CPU,)
    with pytest.raises(ProviderUnavailable, match=f"{CUDA} did not start"):
        Sessions(Provider.CUDA).open(Path("body.onnx"))


@pytest.mark.usefixtures("fake_sessions")
def test_a_cuda_session_has_these_settings() -> None:
    session: Any = Sessions(Provider.CUDA).open(Path("body.onnx"))
    (name, settings), *others = session.asked
    assert (name, others) == (CUDA, [CPU])
    assert settings["arena_extend_strategy"] == "kSameAsRequested"
    assert settings["use_tf32"] == "0"
    entry = "session.use_device_allocator_for_initializers"
    assert session.options.get_session_config_entry(entry) == "1"


def test_all_sessions_on_a_gpu_share_one_arena(fake_sessions: type[FakeSession]) -> None:
    for low_memory in (False, True):
        session: Any = Sessions(Provider.CUDA, low_memory=low_memory).open(Path("body.onnx"))
        assert session.options.get_session_config_entry("session.use_env_allocators") == "1"
    ((provider, memory, _, arena),) = fake_sessions.arenas
    assert (provider, memory.name, arena.max_mem) == (CUDA, "Cuda", 0)


@pytest.mark.usefixtures("fake_sessions")
def test_tf32_is_used_only_where_it_is_asked_for() -> None:
    """It is exact for inputs of 16 bits only."""
    session: Any = Sessions(Provider.CUDA).open(Path("head_tile_fp32.onnx"), use_tf32=True)
    assert session.asked[0][1]["use_tf32"] == "1"


@pytest.mark.parametrize("said", ["Failed to allocate memory for a buffer", "out of memory"])
def test_out_of_memory_is_translated(said: str) -> None:
    with pytest.raises(DoesNotFit, match="out of memory") as refusal, naming_faults("run a graph"):
        raise RuntimeError(said)
    assert refusal.value.hint is not None
    assert "--max-batch-tokens" in refusal.value.hint


def test_any_other_error_of_onnxruntime_names_the_task() -> None:
    with pytest.raises(RunFailed, match=r"cannot run a graph: a wrong shape$"), naming_faults("run a graph"):
        raise RuntimeError("a wrong shape\nand much more")


def test_bfloat16_comes_to_numpy_as_float32() -> None:
    value = ort.OrtValue.ortvalue_from_shape_and_type([2, 3], 16, "cpu")
    assert as_numpy(value).dtype == np.float32
    assert as_numpy(value).shape == (2, 3)


@pytest.mark.usefixtures("fake_sessions")
def test_host_sessions_never_ask_for_cuda() -> None:
    session: Any = Sessions(Provider.CUDA).open(Path("embed.onnx"), on_host=True)
    assert session.asked == [CPU]


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_threads_spin_between_operators_only_and_are_as_many_as_asked(provider: Provider) -> None:
    session: Any = Sessions(provider, threads=3).open(Path("body.onnx"))
    assert session.options.intra_op_num_threads == 3
    assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert session.options.get_session_config_entry("session.intra_op.spin_duration_us") == "200"
    assert session.options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_low_memory_session_keeps_one_copy_of_weights_and_no_arena(provider: Provider) -> None:
    session: Any = Sessions(provider, low_memory=True).open(Path("layer-00.onnx"))
    assert session.options.get_session_config_entry("session.disable_prepacking") == "1"
    assert session.options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert not session.options.enable_cpu_mem_arena
    assert has_entry(session, "session.use_env_allocators") == (provider is Provider.CUDA)


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize(
    "settings",
    [{"low_memory": True}, {"preserve_node_order": True}],
    ids=["low_memory", "preserve_node_order"],
)
def test_ordered_session_dequantizes_each_weight_once_before_use(
    settings: dict[str, bool],
) -> None:
    session: Any = Sessions(Provider.CPU, **settings).open(Path("layer-00.onnx"))
    assert session.options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert session.options.execution_order == ort.ExecutionOrder.PRIORITY_BASED
    assert session.options.get_session_config_entry("session.disable_quant_qdq") == "1"


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_default_session_shares_an_arena_and_prepacks_weights(provider: Provider) -> None:
    session: Any = Sessions(provider).open(Path("body.onnx"))
    assert session.options.get_session_config_entry("session.use_env_allocators") == "1"
    assert not has_entry(session, "session.disable_prepacking")
    assert session.options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def has_entry(session: FakeSession, name: str) -> bool:
    try:
        session.options.get_session_config_entry(name)
    except RuntimeError:  # what ONNX Runtime raises for an entry that was never added
        return False
    return True


def test_a_missing_provider_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module.ort, "get_available_providers", lambda: [CPU])
    with pytest.raises(ProviderUnavailable, match=f"installed without {CUDA}"):
        require(Provider.CUDA)

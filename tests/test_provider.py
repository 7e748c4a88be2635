"""Where graphs run: on what was asked for, or not at all.

Tests with the marker `cuda` need a GPU and skip without one; the others pretend what they need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from tests.checkpoints import TINY
from tests.conftest import PairOf

from stepscore import provider as provider_module
from stepscore.artifact import Pair
from stepscore.choices import Activations, Coding, Precision, Provider, Residency, Target
from stepscore.cli import main
from stepscore.engine import Engine
from stepscore.engines import EngineOptions
from stepscore.errors import PairIncompatible, ProviderUnavailable
from stepscore.plan import Batch, pack
from stepscore.provider import (
    CPU,
    CUDA,
    INTEGER_MODEL,
    UNSIGNED_MODEL,
    Sessions,
    largest_products,
    needs_unsigned_weights,
    require,
    resolve,
)
from stepscore.scorer import Scorer

CUDA_PRECISIONS = [Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4]
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


def test_a_cuda_pair_is_not_loaded_on_the_cpu(pair_of: PairOf) -> None:
    with pytest.raises(PairIncompatible, match="exported for cuda, not for cpu"):
        Scorer.load(pair_of(Precision.FP16, Target.CUDA), provider="cpu")


@without_cuda
@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_cuda_pair_without_cuda_is_refused_naming_what_is_missing(pair_of: PairOf, provider: str) -> None:
    with pytest.raises(ProviderUnavailable, match=CUDA) as refusal:
        Scorer.load(pair_of(Precision.FP16, Target.CUDA), provider=provider)
    assert refusal.value.hint is not None
    assert "stepscore[cuda]" in refusal.value.hint


@without_cuda
def test_the_command_line_refuses_it_too(pair_of: PairOf) -> None:
    pair = pair_of(Precision.FP16, Target.CUDA)
    result = CliRunner().invoke(
        main, ["score", str(pair), "--provider", "cuda", "--problem", "p", "--step", "s"]
    )
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr


def test_the_cpu_is_always_there() -> None:
    require(Provider.CPU)


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
def test_integer_products_are_exact_here(depth: int) -> None:
    unsigned = needs_unsigned_weights()
    assert np.array_equal(largest_products(depth, unsigned=unsigned), exact(depth))


def test_unsigned_weights_are_taken_where_signed_ones_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "largest_products", saturated_if_signed)
    assert needs_unsigned_weights()
    monkeypatch.setattr(provider_module, "largest_products", lambda depth, **_: exact(depth))
    assert not needs_unsigned_weights()


def test_integer_products_that_saturate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "largest_products", saturated)
    with pytest.raises(ProviderUnavailable, match="product of 8-bit integers saturates") as refusal:
        needs_unsigned_weights()
    assert refusal.value.hint == "export the pair with --activations exact"


@pytest.mark.parametrize("residency", Residency)
def test_a_pair_with_int8_activations_does_not_open_where_products_saturate(
    pair_of: PairOf, monkeypatch: pytest.MonkeyPatch, residency: Residency
) -> None:
    pair = pair_of(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)
    Engine(Pair.open(pair), EngineOptions(residency=residency)).close()
    monkeypatch.setattr(provider_module, "largest_products", saturated)
    with pytest.raises(ProviderUnavailable, match="saturates"):
        Engine(Pair.open(pair), EngineOptions(residency=residency))
    with pytest.raises(ProviderUnavailable, match="saturates"):
        Scorer.load(pair)


@pytest.mark.parametrize("coding", [Coding.DIFFERENCE, Coding.INDEPENDENT])
def test_other_pairs_still_open(pair_of: PairOf, monkeypatch: pytest.MonkeyPatch, coding: Coding) -> None:
    monkeypatch.setattr(provider_module, "largest_products", saturated)
    Engine(Pair.open(pair_of(Precision.INT8, coding=coding, activations=Activations.EXACT))).close()


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

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
        self.path, self.options, self.asked = path, options, providers

    def get_providers(self) -> list[str]:
        return list(self.active)


@pytest.fixture
def fake_sessions(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    monkeypatch.setattr(provider_module.ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(FakeSession, "active", FakeSession.active)
    return FakeSession


def test_a_silent_fallback_to_the_cpu_is_an_error(fake_sessions: type[FakeSession]) -> None:
    fake_sessions.active = (CPU,)
    with pytest.raises(ProviderUnavailable, match=f"{CUDA} did not start"):
        Sessions(Provider.CUDA).open(Path("body.onnx"))


@pytest.mark.usefixtures("fake_sessions")
def test_a_cuda_session_has_these_settings() -> None:
    session: Any = Sessions(Provider.CUDA, gpu_mem_limit=123).open(Path("body.onnx"))
    (name, settings), *others = session.asked
    assert (name, others) == (CUDA, [CPU])
    assert settings["arena_extend_strategy"] == "kSameAsRequested"
    assert settings["use_tf32"] == "0"
    assert settings["gpu_mem_limit"] == "123"
    entry = "session.use_device_allocator_for_initializers"
    assert session.options.get_session_config_entry(entry) == "1"


@pytest.mark.usefixtures("fake_sessions")
def test_without_a_limit_none_is_set() -> None:
    session: Any = Sessions(Provider.CUDA).open(Path("body.onnx"))
    assert "gpu_mem_limit" not in session.asked[0][1]


@pytest.mark.usefixtures("fake_sessions")
def test_what_belongs_on_the_host_never_asks_for_cuda() -> None:
    session: Any = Sessions(Provider.CUDA).open(Path("embed.onnx"), on_host=True)
    assert session.asked == [CPU]


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_threads_do_not_spin_and_are_as_many_as_asked(provider: Provider) -> None:
    session: Any = Sessions(provider, threads=3).open(Path("body.onnx"))
    assert session.options.intra_op_num_threads == 3
    assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_a_lean_session_keeps_its_weights_once_and_gives_back_what_it_used(provider: Provider) -> None:
    session: Any = Sessions(provider, lean=True).open(Path("layer-00.onnx"))
    assert session.options.get_session_config_entry("session.disable_prepacking") == "1"
    assert session.options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert not session.options.enable_cpu_mem_arena
    assert not has_entry(session, "session.use_env_allocators")


@pytest.mark.usefixtures("fake_sessions")
def test_a_lean_session_turns_a_matrix_into_floats_once_and_right_before_its_products() -> None:
    session: Any = Sessions(Provider.CPU, lean=True).open(Path("layer-00.onnx"))
    assert session.options.execution_order == ort.ExecutionOrder.PRIORITY_BASED
    assert session.options.get_session_config_entry("session.disable_quant_qdq") == "1"


@pytest.mark.usefixtures("fake_sessions")
@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA])
def test_other_sessions_share_an_arena_and_may_pack_their_weights(provider: Provider) -> None:
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
    with pytest.raises(ProviderUnavailable, match=f"has no {CUDA}"):
        require(Provider.CUDA)


# On a GPU


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(5)
    return pack([random.integers(0, TINY.vocab_size, length) for length in (40, 7, 133, 2)], [0, 0, 50, 0])


@pytest.fixture(scope="module")
def truth(tiny_pair: Path, batch: Batch) -> NDArray[np.float32]:
    (logprobs,) = Engine(Pair.open(tiny_pair)).run([batch])
    return np.concatenate([*logprobs.values()])


def run_on_cuda(pair: Path, batch: Batch, **options: Any) -> NDArray[np.float32]:
    engine = Engine(Pair.open(pair), EngineOptions(provider=Provider.CUDA, **options))
    (logprobs,) = engine.run([batch])
    return np.concatenate([*logprobs.values()])


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("precision", "bound"),
    [(Precision.FP16, 0.02), (Precision.BF16, 0.15), (Precision.INT8, 0.3), (Precision.INT4, 2.0)],
)
def test_cuda_gives_the_numbers_of_the_cpu(
    pair_of: PairOf, batch: Batch, truth: NDArray[np.float32], precision: Precision, bound: float
) -> None:
    assert np.abs(run_on_cuda(pair_of(precision, Target.CUDA), batch) - truth).max() < bound


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", CUDA_PRECISIONS)
def test_cuda_residencies_agree(pair_of: PairOf, batch: Batch, precision: Precision) -> None:
    pair = pair_of(precision, Target.CUDA)
    resident, *others = (run_on_cuda(pair, batch, residency=which) for which in Residency)
    assert all(np.abs(resident - other).max() < 0.05 for other in others)


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", CUDA_PRECISIONS)
def test_every_node_but_copies_runs_on_cuda(
    pair_of: PairOf,
    batch: Batch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    """Read from ONNX Runtime's profile of the sessions that the engine opens."""
    monkeypatch.chdir(tmp_path)
    create = ort.InferenceSession
    opened: list[ort.InferenceSession] = []

    def profiled(path: str, options: ort.SessionOptions, **keywords: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        session = create(path, options, **keywords)
        if Path(path).name != "embed.onnx":
            opened.append(session)
        return session

    monkeypatch.setattr(provider_module.ort, "InferenceSession", profiled)
    run_on_cuda(pair_of(precision, Target.CUDA), batch)
    ran = {
        (event["args"]["op_name"], event["args"]["provider"])
        for session in opened
        for event in json.loads(Path(session.end_profiling()).read_text())
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    }
    assert ran
    assert {kind for kind, where in ran if where != CUDA} <= {"MemcpyToHost", "MemcpyFromHost"}


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", CUDA_PRECISIONS)
def test_attention_is_fused(
    pair_of: PairOf,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    precision: Precision,
) -> None:
    """The unfused path overflows in fp16; ONNX Runtime prints which it took."""
    monkeypatch.setenv("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO", "1")
    run_on_cuda(pair_of(precision, Target.CUDA), batch)
    printed = capfd.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "SdpaKernel=" in line]
    assert lines
    assert all("MATH" not in line for line in lines)


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
def test_gpu_mem_limit_is_honoured(pair_of: PairOf, batch: Batch) -> None:
    """A limit below what the weights need is an error, not a crash and not a limit ignored."""
    with pytest.raises(Exception, match=r"(?i)alloc|memory"):
        run_on_cuda(pair_of(Precision.FP16, Target.CUDA), batch, gpu_mem_limit=1 << 10)

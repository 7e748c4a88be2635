"""Open ONNX Runtime sessions on the CPU or CUDA execution provider, without silent fallback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime as ort

from stepscore.enums import Provider
from stepscore.errors import DoesNotFit, ProviderUnavailable, RunFailed, StepscoreError
from stepscore.system import available_cores

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
SPIN_MICROSECONDS = 200
"""How long a thread that has no work spins before it sleeps: waking it takes as long as a small operator."""
FULL_MEMORY = ("Failed to allocate memory", "Available memory of", "out of memory")
"""ONNX Runtime's messages where the limit of an arena, or of the GPU, is reached."""


@dataclass(frozen=True)
class Sessions:
    """Opens ONNX Runtime sessions, all with the same settings."""

    provider: Provider
    threads: int | None = None
    preserve_node_order: bool = False
    """Preserve the node order of the file, so that each weight is dequantized once, just before its GEMM.

    By default ONNX Runtime may run nodes without inputs first, dequantizing all weights of a model at once,
    gives every GEMM its own DequantizeLinear, and folds constants: weights would be floats from the start.
    """
    low_memory: bool = False
    """Minimize memory, for a graph that is opened, run once and closed.

    Node order is preserved, weights are used in the mapped file without prepacking, without an arena.
    """

    def open(
        self, model: Path | bytes, *, on_host: bool = False, use_tf32: bool = False
    ) -> ort.InferenceSession:
        """Open one graph; `on_host` runs it on the CPU (the embedding) with any provider.

        `use_tf32` rounds the inputs of CUDA's fp32 GEMMs to 11 significant bits, which fp16 and bf16 have.
        """
        source = model if isinstance(model, bytes) else str(model)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads or available_cores()
        options.enable_mem_pattern = False  # shapes differ from batch to batch
        # Threads wait actively between two operators, but not between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.preserve_node_order or self.low_memory:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.low_memory:
            options.enable_cpu_mem_arena = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        else:
            options.add_session_config_entry("session.use_env_allocators", "1")
            _share_host_arena()
        with naming_faults(f"open {model.parent.name}/{model.name}" if isinstance(model, Path) else "start"):
            if self.provider is Provider.CUDA and not on_host:
                return self._open_cuda(source, options, use_tf32=use_tf32)
            return ort.InferenceSession(source, options, providers=[CPU])

    def _open_cuda(
        self, source: str | bytes, options: ort.SessionOptions, *, use_tf32: bool
    ) -> ort.InferenceSession:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if self.low_memory:  # set for all other sessions already
            options.add_session_config_entry("session.use_env_allocators", "1")
        _share_device_arena()
        tf32 = {"use_tf32": "1" if use_tf32 else "0"}
        cuda_options: dict[str, str] = {"arena_extend_strategy": "kSameAsRequested", **tf32}
        session = ort.InferenceSession(source, options, providers=[(CUDA, cuda_options), CPU])
        if session.get_providers()[0] != CUDA:
            raise ProviderUnavailable(
                f"{CUDA} did not start: ONNX Runtime fell back to {session.get_providers()[0]}",
                hint="run `stepscore doctor` to find the missing library",
            )
        return session


@contextmanager
def naming_faults(task: str) -> Iterator[None]:
    """Raise DoesNotFit where ONNX Runtime runs out of memory, else RunFailed; its own errors have no base."""
    try:
        yield
    except StepscoreError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in FULL_MEMORY):
            raise DoesNotFit(
                f"out of memory: {said[-200:]}",
                hint="lower --max-batch-tokens, use --residency stream, or raise --memory-limit",
            ) from None
        raise RunFailed(
            f"ONNX Runtime cannot {task}: {said[:300]}",
            hint="run `stepscore doctor PAIR`; if the machine is in order, export the pair again",
        ) from error


@cache
def _share_host_arena() -> None:
    """Register one arena for all sessions of the process; it grows by the requested size, not by doubling."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


@cache
def _share_device_arena() -> None:
    """Register one GPU arena for all sessions of the process; it grows by the requested size."""
    memory = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator_v2(CUDA, memory, {}, ort.OrtArenaCfg({"arena_extend_strategy": 1}))

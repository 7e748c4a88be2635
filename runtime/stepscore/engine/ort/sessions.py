"""Where graphs run: ONNX Runtime's CPU or CUDA execution provider, and never one in place of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime as ort

from stepscore.enums import Provider
from stepscore.errors import DoesNotFit, ProviderUnavailable
from stepscore.system import available_cores

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
FULL_MEMORY = ("Failed to allocate memory", "Available memory of", "out of memory")
"""What ONNX Runtime says where an arena's limit is reached, or the GPU's own."""


@dataclass(frozen=True)
class Sessions:
    """Opens ONNX Runtime sessions, all with the same settings."""

    provider: Provider
    threads: int | None = None
    gpu_mem_limit: int | None = None
    preserve_node_order: bool = False
    """For a graph that turns matrices into floats as it runs: nodes run in the order of the file.

    Each is turned right before its product, and only once where it has two. In the usual order what depends
    on nothing may come first, a model's matrices together, and each product gets a DequantizeLinear of its
    own; with ONNX Runtime's optimisations they would be floats from the start.
    """
    low_memory: bool = False
    """For a graph that is opened, run and closed: as little memory as it can be run in.

    Ordered, and weights are used where they are mapped: nothing is packed, and what was used is given back.
    """

    def open(self, model: Path | bytes, *, on_host: bool = False) -> ort.InferenceSession:
        """Open one graph; `on_host` keeps it on the CPU (the embedding table) whatever the provider."""
        source = model if isinstance(model, bytes) else str(model)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads or available_cores()
        options.enable_mem_pattern = False  # shapes differ from batch to batch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
        if self.provider is Provider.CUDA and not on_host:
            return self._open_cuda(source, options)
        return ort.InferenceSession(source, options, providers=[CPU])

    def _open_cuda(self, source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if self.low_memory:  # the others have it already
            options.add_session_config_entry("session.use_env_allocators", "1")
        _share_device_arena(self.gpu_mem_limit)
        cuda_options: dict[str, str] = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
        if self.gpu_mem_limit is not None:
            cuda_options["gpu_mem_limit"] = str(self.gpu_mem_limit)
        with naming_full_memory():
            session = ort.InferenceSession(source, options, providers=[(CUDA, cuda_options), CPU])
        if session.get_providers()[0] != CUDA:
            raise ProviderUnavailable(
                f"ONNX Runtime fell back to {session.get_providers()[0]}: {CUDA} did not start",
                hint="run `stepscore doctor`; it names the missing library",
            )
        return session


@contextmanager
def naming_full_memory() -> Iterator[None]:
    """Raise DoesNotFit where ONNX Runtime says that a GPU's memory is full: it has no class for that."""
    try:
        yield
    except Exception as error:
        said = str(error)
        if any(sign in said for sign in FULL_MEMORY):
            raise DoesNotFit(
                f"the GPU has no memory left: {said.splitlines()[0][-200:]}",
                hint="lower --max-batch-tokens, take --residency stream, or raise --memory-limit",
            ) from None
        raise


@cache
def _share_host_arena() -> None:
    """Register one arena for all sessions of the process; it grows by what is asked for, not by doubling."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


_device_arena: list[int | None] = []
"""The limit of the arena on the GPU, once there is one: it belongs to the process."""


def _share_device_arena(limit: int | None) -> None:
    """Register one arena on the GPU for all sessions of the process; its limit is for all together."""
    if not _device_arena:
        memory = ort.OrtMemoryInfo(
            "Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        )
        arena = ort.OrtArenaCfg({"max_mem": limit or 0, "arena_extend_strategy": 1})
        ort.create_and_register_allocator_v2(CUDA, memory, {}, arena)
        _device_arena.append(limit)
    elif _device_arena != [limit]:
        raise ProviderUnavailable(
            "the limit of the GPU's memory cannot change within a process",
            hint="give every pair the same --memory-limit, or score in another process",
        )

"""Where graphs run: ONNX Runtime's CPU or CUDA execution provider, and never one in place of the other."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.engine.base import available_cores
from stepscore.enums import Provider, Target
from stepscore.errors import DoesNotFit, PairIncompatible, ProviderUnavailable

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
FULL_MEMORY = ("Failed to allocate memory", "Available memory of", "out of memory")
"""What ONNX Runtime says where an arena's limit is reached, or the GPU's own."""

# y = x @ x over float32 [1, 1], opset 17: enough to make a provider load its libraries and run.
TINY_MODEL = (
    b'\x08\x08:@\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x01g'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x01"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x01"
    b"B\x04\n\x00\x10\x11"
)

# y = x as float32, of bfloat16 [m, k], opset 21.
WIDENING_MODEL = (
    b'\x08\x08:J\n\x17\n\x01x\x12\x01y"\x04Cast*\t\n\x02to\x18\x01\xa0\x01\x02\x12\x01g'
    b"Z\x15\n\x01x\x12\x10\n\x0e\x08\x10\x12\n\n\x03\x12\x01m\n\x03\x12\x01k"
    b"b\x15\n\x01y\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01k"
    b"B\x04\n\x00\x10\x15"
)

# y = (a - z) @ (b - w), each column times s: MatMulIntegerToFloat of uint8 a and int8 b, opset 21.
INTEGER_MODEL = (
    b"\x08\x08:\xab\x01\n:\n\x01a\n\x01b\n\x01s\n\x01s\n\x01z\n\x01w\x12\x01y"
    b'"\x14MatMulIntegerToFloat:\rcom.microsoft\x12\x01g'
    b"Z\x15\n\x01a\x12\x10\n\x0e\x08\x02\x12\n\n\x03\x12\x01m\n\x03\x12\x01k"
    b"Z\x15\n\x01b\x12\x10\n\x0e\x08\x03\x12\n\n\x03\x12\x01k\n\x03\x12\x01n"
    b"Z\x0b\n\x01s\x12\x06\n\x04\x08\x01\x12\x00Z\x0b\n\x01z\x12\x06\n\x04\x08\x02\x12\x00"
    b"Z\x0b\n\x01w\x12\x06\n\x04\x08\x03\x12\x00"
    b"b\x15\n\x01y\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01n"
    b"B\x04\n\x00\x10\x15B\x11\n\rcom.microsoft\x10\x01"
)
# The same of uint8 b and w.
UNSIGNED_MODEL = INTEGER_MODEL.replace(b"b\x12\x10\n\x0e\x08\x03", b"b\x12\x10\n\x0e\x08\x02").replace(
    b"w\x12\x06\n\x04\x08\x03", b"w\x12\x06\n\x04\x08\x02"
)


def resolve(provider: Provider, target: Target | None, *, portable: bool = False) -> Provider:
    """Return cpu or cuda; raise PairIncompatible where the pair's graphs have no kernels there.

    `portable` graphs, of standard operators only, run on either; their target is what `auto` is.
    """
    target = target or Target.CPU
    resolved = Provider(target.value) if provider is Provider.AUTO else provider
    if resolved.value != target.value and not portable:
        raise PairIncompatible(
            f"this pair was exported for {target.value}, not for {resolved.value}",
            hint=f"export it with --target {resolved.value}, or drop --provider",
        )
    return resolved


@dataclass(frozen=True)
class Sessions:
    """Opens ONNX Runtime sessions, all with the same settings."""

    provider: Provider
    threads: int | None = None
    gpu_mem_limit: int | None = None
    ordered: bool = False
    """For a graph that turns matrices into floats as it runs: nodes run in the order of the file.

    Each is turned right before its product, and only once where it has two. In the usual order what depends
    on nothing may come first, a model's matrices together, and each product gets a DequantizeLinear of its
    own; with ONNX Runtime's optimisations they would be floats from the start.
    """
    lean: bool = False
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
        if self.ordered or self.lean:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.lean:
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
        if self.lean:  # the others have it already
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


def as_numpy(value: ort.OrtValue) -> NDArray[np.floating]:
    """Copy rows [m, k] to the host; bfloat16, which numpy does not have, as float32."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    session = Sessions(Provider(value.device_name().lower())).open(WIDENING_MODEL)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    (wide,) = binding.copy_outputs_to_cpu()
    return np.asarray(wide)


def give_back_memory() -> None:
    """Have the C library return what is free to the system; glibc would keep it for later."""
    with suppress(AttributeError, OSError, TypeError):  # another C library, or no Linux
        ctypes.CDLL(None).malloc_trim(0)


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


def runs_here(target: Target) -> bool:
    """Return whether this machine runs the provider that the target needs."""
    try:
        run_tiny_model(Provider(target.value))
    except Exception:  # ONNX Runtime raises its own, unrelated classes
        return False
    return True


def run_tiny_model(provider: Provider) -> None:
    """Run a real session the way the engine opens one; ProviderUnavailable where it does not compute."""
    require(provider)
    (value,) = Sessions(provider).open(TINY_MODEL).run(None, {"x": np.full((1, 1), 3, np.float32)})
    if value.item() != 9:
        raise ProviderUnavailable(f"3 * 3 gave {value.item()}", hint="do not trust this machine's numbers")


def largest_products(depth: int, *, unsigned: bool) -> NDArray[np.float32]:
    """Multiply the largest codes there are, 255 and 127, on the operator of int8 activations: [8, 32].

    Where weights are `unsigned`, 127 is stored as 255: 128 more.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    weights, above = (np.uint8, 128) if unsigned else (np.int8, 0)
    feeds = {
        "a": np.full((8, depth), 255, np.uint8),
        "b": np.full((depth, 32), 127 + above, weights),
        "s": np.array(1, np.float32),
        "z": np.array(0, np.uint8),
        "w": np.array(above, weights),
    }
    model = UNSIGNED_MODEL if unsigned else INTEGER_MODEL
    (products,) = ort.InferenceSession(model, options, providers=[CPU]).run(None, feeds)
    return np.asarray(products)


def needs_unsigned_weights() -> bool:
    """Whether products of 8-bit integers are exact here only if weights are unsigned too.

    x86 CPUs without VNNI add two products of an unsigned and a signed number in 16 bits, where 2 * 255 * 127
    does not fit, and nothing but the numbers shows it. Products of unsigned numbers are exact on all that we
    know, and slower; ProviderUnavailable where they are not.
    """
    for unsigned in (False, True):
        if np.array_equal(largest_products(64, unsigned=unsigned), np.full((8, 32), 64 * 255 * 127)):
            return unsigned
    raise ProviderUnavailable(
        "this CPU's product of 8-bit integers saturates: rewards would be wrong",
        hint="export the pair with --activations exact",
    )


def require(provider: Provider) -> None:
    """Raise ProviderUnavailable unless the provider is there, naming what is missing."""
    if provider is not Provider.CUDA:
        return
    if CUDA not in ort.get_available_providers():
        raise ProviderUnavailable(
            f"onnxruntime {ort.__version__} as installed has no {CUDA}, only {ort.get_available_providers()}",
            hint="pip uninstall onnxruntime; pip install 'stepscore[cuda]'",
        )
    ort.preload_dlls()  # cuBLAS and cuDNN from the nvidia-* packages; logs what it cannot find

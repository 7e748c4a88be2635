"""Check with tiny models that an execution provider runs here and computes correctly."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.engine.ort.sessions import CPU, CUDA, Sessions
from stepscore.enums import Provider, Target
from stepscore.errors import PairIncompatible, ProviderUnavailable

# y = x @ x over float32 [1, 1], opset 17: enough to make a provider load its libraries and run.
TINY_MODEL = (
    b'\x08\x08:@\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x01g'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x01"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x01"
    b"B\x04\n\x00\x10\x11"
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
    """Return cpu or cuda; raise PairIncompatible where the pair's graphs do not run on the provider.

    `portable` pairs run on both; `auto` is then their target.
    """
    target = target or Target.CPU
    resolved = Provider(target.value) if provider is Provider.AUTO else provider
    if resolved.value != target.value and not portable:
        raise PairIncompatible(
            f"this pair was exported for {target.value}, not for {resolved.value}",
            hint=f"export it with --target {resolved.value}, or omit --provider",
        )
    return resolved


def runs_here(target: Target) -> bool:
    """Return whether the execution provider of a target runs on this machine."""
    try:
        run_tiny_model(Provider(target.value))
    except Exception:  # ONNX Runtime has no common class of errors
        return False
    return True


def run_tiny_model(provider: Provider) -> None:
    """Run a session opened as the engine opens one; raise ProviderUnavailable where it computes wrongly."""
    require(provider)
    (value,) = Sessions(provider).open(TINY_MODEL).run(None, {"x": np.full((1, 1), 3, np.float32)})
    if value.item() != 9:
        raise ProviderUnavailable(
            f"ONNX Runtime computes wrong results on this machine: 3 * 3 = {value.item()}",
            hint="reinstall onnxruntime, or use another machine",
        )


def largest_products(depth: int, *, unsigned: bool) -> NDArray[np.float32]:
    """Return the GEMM of the largest codes, 255 and 127, by the operator of W8A8: float32 [8, 32].

    `unsigned` weights are stored with an offset of 128: 127 as 255.
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
    """Return whether 8-bit integer GEMM is exact on this CPU only with unsigned weights.

    x86 CPUs without VNNI add two uint8 x int8 products in saturating 16-bit arithmetic, where 2 * 255 * 127
    overflows silently. uint8 x uint8 is exact on all known CPUs, and slower; raises ProviderUnavailable where
    it is not.
    """
    for unsigned in (False, True):
        if np.array_equal(largest_products(64, unsigned=unsigned), np.full((8, 32), 64 * 255 * 127)):
            return unsigned
    raise ProviderUnavailable(
        "8-bit integer GEMM saturates on this CPU: rewards would be wrong",
        hint="export the pair with --activations exact",
    )


def require(provider: Provider) -> None:
    """Raise ProviderUnavailable unless onnxruntime as installed has the provider."""
    if provider is not Provider.CUDA:
        return
    if CUDA not in ort.get_available_providers():
        raise ProviderUnavailable(
            f"onnxruntime {ort.__version__} is installed without {CUDA}: it has "
            f"{ort.get_available_providers()}",
            hint="pip uninstall onnxruntime; pip install 'stepscore[cuda]'; or run the pair, slowly, with "
            "--provider cpu",
        )
    ort.preload_dlls()  # cuBLAS and cuDNN of the nvidia-* packages; logs those it cannot find

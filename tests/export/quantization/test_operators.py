"""ONNX Runtime's operators read codes as `dequantize` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from testing.hypothesis_profiles import examples
from testing.matrices import BITS, BLOCK_SIZES, Weight, weights

from stepscore.engine.ort.provider_checks import needs_unsigned_weights
from stepscore_export.quantization.rounding import (
    Quantized,
    QuantizedChannels,
    dequantize,
    pack,
    quantize,
    quantize_channels,
    signed,
)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("columns", [64, 100, 257])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_matmulnbits_computes_with_what_dequantize_gives(
    bits: int, block_size: int, columns: int, rows: int
) -> None:
    random = np.random.default_rng(columns + rows)
    weight = random.standard_normal((24, columns), np.float32)
    activations = random.standard_normal((rows, columns), np.float32)
    quantized = quantize(weight, bits, block_size)
    expected = activations.astype(np.float64) @ dequantize(quantized, bits, columns).T
    assert np.abs(_matmulnbits(activations, quantized, bits, block_size) - expected).max() < 1e-4


@examples(30)
@given(weights(smallest=2**-3), BITS, BLOCK_SIZES)
def test_matmulnbits_times_the_identity_is_dequantize(weight: Weight, bits: int, block_size: int) -> None:
    quantized = quantize(weight, bits, block_size)
    columns = weight.shape[1]
    product = _matmulnbits(np.eye(columns, dtype=np.float32), quantized, bits, block_size)
    assert np.allclose(product.T, dequantize(quantized, bits, columns), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("columns", [64, 72, 48])
def test_matmulnbits_reads_zero_points_as_dequantize_does(block_size: int, columns: int) -> None:
    """Rows of an odd number of blocks end in half a byte."""
    weight = np.random.default_rng(columns).standard_normal((24, columns), np.float32) + np.float32(0.3)
    quantized = quantize(weight, 4, block_size, asymmetric=True)
    product = _matmulnbits(np.eye(columns, dtype=np.float32), quantized, 4, block_size)
    assert np.allclose(product.T, dequantize(quantized, 4, columns), rtol=1e-6, atol=1e-6)


# What turns codes into floats


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("columns", [32, 72, 99, 257])
def test_gatherblockquantized_gives_what_dequantize_gives(
    bits: int, block_size: int, columns: int, *, asymmetric: bool
) -> None:
    """To a rounding: code * scale - zero * scale; codes of zero are exactly 0."""
    weight = np.random.default_rng(columns).standard_normal((24, columns), np.float32)
    weight[::3] = 0
    quantized = quantize(weight, bits, block_size, asymmetric=asymmetric)
    expected = dequantize(quantized, bits, columns)
    found = _gatherblockquantized(quantized, bits, block_size)[:, :columns]
    assert np.abs(found - expected).max() <= 2**-23 * np.abs(expected).max()
    assert np.array_equal(found == 0, expected == 0)


def _gatherblockquantized(quantized: Quantized, bits: int, block_size: int) -> NDArray[np.float32]:
    rows, blocks = quantized.scales.shape
    arrays = {
        "codes": quantized.codes.reshape(rows, -1),
        "indices": np.arange(rows),
        "scales": quantized.scales,
    }
    if quantized.zeros is not None:
        to_whole_bytes = -blocks % (8 // bits)
        arrays["zeros"] = pack(np.pad(quantized.zeros, ((0, 0), (0, to_whole_bytes))), bits)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    node = helper.make_node(
        "GatherBlockQuantized",
        [*arrays],
        ["y"],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=block_size,
        bits=bits,
    )
    return _run(node, tensors, {}, (rows, blocks * block_size))


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("columns", [32, 72, 99, 257])
def test_dequantizelinear_gives_what_dequantize_gives_bit_by_bit(
    bits: int, block_size: int, columns: int, *, asymmetric: bool
) -> None:
    weight = np.random.default_rng(columns).standard_normal((24, columns), np.float32)
    quantized = quantize(weight, bits, block_size, asymmetric=asymmetric)
    found = _dequantizelinear(quantized, bits, block_size)[:, :columns]
    assert np.array_equal(found, dequantize(quantized, bits, columns))


def _dequantizelinear(quantized: Quantized, bits: int, block_size: int) -> NDArray[np.float32]:
    rows, blocks = quantized.scales.shape
    dtype = {8: TensorProto.INT8, 4: TensorProto.INT4}[bits]

    def tensor(name: str, packed: NDArray[np.uint8], columns: int) -> TensorProto:
        return helper.make_tensor(name, dtype, (rows, columns), signed(packed, bits).tobytes(), raw=True)

    tensors = [
        tensor("codes", quantized.codes, blocks * block_size),
        numpy_helper.from_array(quantized.scales, "scales"),
    ]
    if quantized.zeros is not None:
        tensors.append(tensor("zeros", pack(quantized.zeros.reshape(1, -1), bits), blocks))
    names = [each.name for each in tensors]
    node = helper.make_node("DequantizeLinear", names, ["y"], axis=1, block_size=block_size)
    return _run(node, tensors, {}, (rows, blocks * block_size))


@examples(30)
@given(weights(smallest=2**-3), st.integers(1, 9), st.integers(0, 1000))
def test_matmulintegertofloat_computes_with_channels_what_numpy_does(
    weight: Weight, rows: int, seed: int
) -> None:
    channels = quantize_channels(weight)
    codes = np.random.default_rng(seed).integers(0, 256, (rows, weight.shape[1]), np.uint8)
    exact = (codes.astype(np.int64) - 128) @ channels.codes.astype(np.int64).T * channels.scales.astype(float)
    assert np.allclose(_integer_product(codes, channels), exact, rtol=1e-6, atol=0)


def _integer_product(codes: NDArray[np.uint8], channels: QuantizedChannels) -> NDArray[np.float32]:
    """[m, K] x [N, K] -> [m, N], the operands as the graph has them that this CPU runs."""
    weights, zeros = channels.codes.T, ["zero"]
    if needs_unsigned_weights():
        weights, zeros = (weights.astype(np.int16) + 128).astype(np.uint8), ["zero", "zero"]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(weights), "codes"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(channels.scales, "scales"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    ]
    names = ["a", "codes", "one", "scales", *zeros]
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    return _run(node, tensors, {"a": codes}, (len(codes), len(channels.codes)))


def _matmulnbits(
    activations: Weight, quantized: Quantized, bits: int, block_size: int
) -> NDArray[np.float32]:
    columns, rows = activations.shape[1], len(quantized.codes)
    parts = {"codes": quantized.codes, "scales": quantized.scales}
    if quantized.zeros is not None:
        to_whole_bytes = -quantized.zeros.shape[1] % (8 // bits)
        parts["zeros"] = pack(np.pad(quantized.zeros, ((0, 0), (0, to_whole_bytes))), bits)
    tensors = [numpy_helper.from_array(array, name) for name, array in parts.items()]
    node = helper.make_node(
        "MatMulNBits",
        ["a", *parts],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=bits,
        block_size=block_size,
        accuracy_level=1,
    )
    return _run(node, tensors, {"a": activations}, (len(activations), rows))


def _run(
    node: NodeProto, tensors: list[TensorProto], inputs: dict[str, NDArray[Any]], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """One node, its weights as initializers, as in an exported graph."""
    graph = helper.make_graph(
        [node],
        "one-node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, inputs)
    return np.asarray(product)

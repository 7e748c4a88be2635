"""Block quantisation: what `quantize` promises, and that MatMulNBits reads it as `dequantize` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from stepscore.provider import needs_unsigned_weights
from stepscore_export.quantize import (
    Grid,
    Quantized,
    QuantizedChannels,
    dequantize,
    pack,
    quantize,
    quantize_channels,
    signed,
)

Weight = NDArray[np.float32]

BITS = st.sampled_from([2, 4, 8])
BLOCK_SIZES = st.sampled_from([16, 32, 64, 128])


@st.composite
def weights(draw: st.DrawFn, smallest: float = 2**-10) -> Weight:
    """Any matrix of a few blocks: zeros, and magnitudes from `smallest` to 1024, of both signs."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 150)))
    magnitude = st.floats(smallest, 1024, width=32) | st.just(0.0)
    values = draw(npst.arrays(np.float32, shape, elements=magnitude))
    signs = draw(npst.arrays(np.bool_, shape))
    return np.where(signs, -values, values).astype(np.float32)


def per_column(quantized: Quantized, block_size: int, columns: int) -> NDArray[np.float64]:
    """The scale of every entry."""
    return np.repeat(quantized.scales.astype(np.float64), block_size, axis=1)[:, :columns]


@given(weights(), BITS, BLOCK_SIZES, st.sampled_from([np.float32, np.float16]))
def test_error_is_at_most_one_step(
    weight: Weight, bits: int, block_size: int, scale_dtype: type[np.floating]
) -> None:
    # scales below 6e-5 are subnormal in fp16: less precise than the law says
    weight = np.where(np.abs(weight) < 0.01, 0, weight) if scale_dtype is np.float16 else weight
    quantized = quantize(weight, bits, block_size, scale_dtype)
    error = np.abs(weight - dequantize(quantized, bits, weight.shape[1]))
    rounded_scale = (1 << (bits - 1)) * float(np.finfo(scale_dtype).eps)
    assert np.all(error <= np.abs(per_column(quantized, block_size, weight.shape[1])) * (1 + rounded_scale))


@given(weights(), BITS, BLOCK_SIZES)
def test_error_is_at_most_half_a_step_but_where_an_entry_mirrors_the_largest(
    weight: Weight, bits: int, block_size: int
) -> None:
    quantized = quantize(weight, bits, block_size)
    scale = per_column(quantized, block_size, weight.shape[1])
    steps = np.divide(weight, scale, out=np.zeros_like(scale), where=scale != 0)
    inside = steps <= (1 << (bits - 1)) - 0.5
    error = np.abs(weight - dequantize(quantized, bits, weight.shape[1]))
    assert np.all((error <= np.abs(scale) * (0.5 + 1e-5))[inside])


@given(weights(), st.integers(1, 160))
def test_the_grid_is_that_of_numpys_extremes_for_any_block_size(weight: Weight, block_size: int) -> None:
    """However the extremes are found: halves of an odd block are not even."""
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block_size))).reshape(len(weight), -1, block_size)
    high, low = blocks.max(axis=-1), blocks.min(axis=-1)
    symmetric, asymmetric = (quantize(weight, 8, block_size, asymmetric=which) for which in (False, True))
    assert np.array_equal(symmetric.scales, Grid.symmetric(high, low, 8, np.float32).scales)
    grid = Grid.asymmetric(high, low, 8, np.float32)
    assert np.array_equal(asymmetric.scales, grid.scales)
    assert asymmetric.zeros is not None
    assert np.array_equal(asymmetric.zeros, grid.zeros)


@given(weights(), BITS, BLOCK_SIZES)
def test_zeros_stay_zero(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    assert np.all(restored[weight == 0] == 0)


@given(weights(), BITS, BLOCK_SIZES)
def test_the_largest_of_a_block_is_kept(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    for start in range(0, weight.shape[1], block_size):
        block, after = weight[:, start : start + block_size], restored[:, start : start + block_size]
        assert np.allclose(np.abs(block).max(axis=1), np.abs(after).max(axis=1), rtol=1e-6, atol=0)


@given(weights(), BITS, BLOCK_SIZES)
def test_a_matrix_of_codes_is_restored_exactly(weight: Weight, bits: int, block_size: int) -> None:
    """Quantising what was dequantised changes nothing: rounding happens once."""
    once = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    twice = dequantize(quantize(once, bits, block_size), bits, weight.shape[1])
    assert np.allclose(once, twice, rtol=1e-6, atol=0)


@given(weights(), BITS, BLOCK_SIZES)
def test_columns_are_padded_with_zeros(weight: Weight, bits: int, block_size: int) -> None:
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block_size)))
    ours, theirs = quantize(weight, bits, block_size), quantize(padded, bits, block_size)
    assert ours.codes.shape == (rows, -(-columns // block_size), block_size * bits // 8)
    assert np.array_equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.scales, theirs.scales)


@given(weights(), BITS, BLOCK_SIZES)
def test_rows_do_not_know_each_other(weight: Weight, bits: int, block_size: int) -> None:
    whole = quantize(weight, bits, block_size)
    for index in range(len(weight)):
        alone = quantize(weight[index : index + 1], bits, block_size)
        assert np.array_equal(alone.codes[0], whole.codes[index])
        assert np.array_equal(alone.scales[0], whole.scales[index])


@given(
    npst.arrays(np.float32, (2, 40), elements=st.floats(-(2**-123), 2**-123, width=32)),
    BITS,
    BLOCK_SIZES,
)
def test_tiny_and_subnormal_values_never_overflow(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    assert np.all(np.isfinite(restored))
    assert np.all(np.abs(restored - weight) <= np.abs(weight).max() + np.finfo(np.float32).tiny)


@given(weights(), BITS)
def test_scales_have_the_type_that_was_asked_for(weight: Weight, bits: int) -> None:
    assert quantize(weight, bits, 32, np.float16).scales.dtype == np.float16


def test_four_bit_codes_lie_two_in_a_byte_even_column_low() -> None:
    weight = np.array([[-8, -7, *range(-6, 8)]], np.float32)
    quantized = quantize(weight, 4, 16)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes.ravel().tolist() == [low | (low + 1) << 4 for low in range(0, 16, 2)]


def test_two_bit_codes_lie_four_in_a_byte_the_first_column_lowest() -> None:
    quantized = quantize(np.array([[-2, -1, 0, 1] * 4], np.float32), 2, 16)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes.ravel().tolist() == [0b11_10_01_00] * 4


@given(npst.arrays(np.uint8, (2, 8)), BITS)
def test_signed_codes_are_the_same_numbers_in_twos_complement(values: NDArray[np.uint8], bits: int) -> None:
    codes = values >> (8 - bits)
    half = 1 << (bits - 1)
    twos_complement = ((codes.astype(np.int64) - half) % (1 << bits)).astype(np.uint8)
    assert np.array_equal(signed(pack(codes, bits), bits), pack(twos_complement, bits))


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (16, 32), (4, 31)])
def test_other_layouts_are_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="bits must be 2, 4 or 8"):
        quantize(np.ones((1, 32), np.float32), bits, block_size)


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


@settings(max_examples=30)
@given(weights(smallest=2**-3), BITS, BLOCK_SIZES)
def test_matmulnbits_times_the_identity_is_dequantize(weight: Weight, bits: int, block_size: int) -> None:
    quantized = quantize(weight, bits, block_size)
    columns = weight.shape[1]
    product = _matmulnbits(np.eye(columns, dtype=np.float32), quantized, bits, block_size)
    assert np.allclose(product.T, dequantize(quantized, bits, columns), rtol=1e-6, atol=1e-6)


@given(weights(), BITS, BLOCK_SIZES)
def test_an_asymmetric_grid_is_at_most_one_step_off_and_keeps_zeros(
    weight: Weight, bits: int, block_size: int
) -> None:
    quantized = quantize(weight, bits, block_size, asymmetric=True)
    restored = dequantize(quantized, bits, weight.shape[1])
    scale = per_column(quantized, block_size, weight.shape[1])
    assert np.all(np.abs(weight - restored) <= scale * (1 + 1e-5))
    assert np.all(restored[weight == 0] == 0)


@given(weights(), BITS, BLOCK_SIZES)
def test_an_asymmetric_grid_of_one_sign_wastes_no_code(weight: Weight, bits: int, block_size: int) -> None:
    """Its step is half that of a symmetric one, or nearly: 2^bits - 1 steps for what were 2^(bits - 1)."""
    of_one_sign = np.abs(weight)
    symmetric = quantize(of_one_sign, bits, block_size)
    asymmetric = quantize(of_one_sign, bits, block_size, asymmetric=True)
    shrunk = (1 << (bits - 1)) / ((1 << bits) - 1)
    assert np.allclose(asymmetric.scales, np.abs(symmetric.scales) * shrunk, rtol=1e-6, atol=0)
    assert asymmetric.zeros is not None
    assert not asymmetric.zeros.any()


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


# One scale a row


@given(weights())
def test_channels_are_at_most_half_a_step_off(weight: Weight) -> None:
    channels = quantize_channels(weight)
    step = channels.scales.astype(np.float64)[:, None]
    assert np.all(np.abs(weight - channels.codes * step) <= step * (0.5 + 1e-5))


@given(weights())
def test_codes_of_channels_reach_127_and_never_minus_128(weight: Weight) -> None:
    channels = quantize_channels(weight)
    largest = np.abs(channels.codes.astype(np.int64)).max(axis=1)
    assert np.array_equal(largest, np.where(weight.any(axis=1), 127, 0))


@given(weights())
def test_a_channel_of_zeros_has_scale_zero(weight: Weight) -> None:
    weight[0] = 0
    channels = quantize_channels(weight)
    assert channels.scales[0] == 0
    assert not channels.codes[0].any()


@given(npst.arrays(np.float32, (2, 40), elements=st.floats(-(2**-123), 2**-123, width=32)))
def test_channels_of_tiny_and_subnormal_values_never_overflow(weight: Weight) -> None:
    channels = quantize_channels(weight)
    restored = channels.codes * channels.scales[:, None]
    assert np.all(np.abs(restored - weight) <= 128 * np.finfo(np.float32).tiny)


@settings(max_examples=30)
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

"""The graphs of pairs for CUDA compute what numpy does: every decoder, and the head over any tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from testing.checkpoints import ODD, TINY

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.generic_graphs import Decoder, decoders
from stepscore.artifact.graph_contract import CHUNK_ROWS, HIDDEN, PARTS, TARGETS
from stepscore.engine.base import logprobs_of
from stepscore.engine.cuda.device import HostDevice, Tensor, host_bytes, run_graph
from stepscore.engine.element_types import BFLOAT16, FLOAT, FLOAT16, ONNX_TYPES, as_float32, in_type
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import DifferencePrecision, Precision, Provider
from stepscore_export.families.base import architecture
from stepscore_export.graphs.generic import cast_graph, decoder_graph, generic_head_tile
from stepscore_export.graphs.shape import Shape
from stepscore_export.options import BLOCK_SIZES
from stepscore_export.quantization.rounding import Quantized, dequantize, pack, quantize, signed

SHAPE = Shape(("policy",), (1e-6,), 64, 4, 2, 16, compute=ir.DataType.FLOAT16, on_cpu=False)
IN_FP32 = replace(SHAPE, compute=ir.DataType.FLOAT, on_cpu=True)
DECODERS = sorted(
    {
        decoder
        for config in (TINY, ODD)
        for precision in (Precision.INT8, Precision.INT4)
        for block_size in BLOCK_SIZES
        for difference in (None, DifferencePrecision.INT8, DifferencePrecision.INT4)
        for decoder in decoders(architecture(config), precision, block_size, difference)
    },
    key=repr,
)
"""All that pairs of these two shapes have."""

every_variant = pytest.mark.parametrize("shape", [SHAPE, IN_FP32], ids=["fp16", "fp32"])
every_decoder = pytest.mark.parametrize(
    "decoder", DECODERS, ids=lambda each: f"{each.name}-{each.block_size}{'-padded' if each.padded else ''}"
)
DEVICE = HostDevice()


def session(model: ir.Model) -> ort.InferenceSession:
    return Sessions(Provider.CPU).open(ir.to_proto(model).SerializeToString())


def read(tensor: Tensor) -> NDArray[np.float32]:
    kind = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: np.uint16}[tensor.element_type]
    values = host_bytes(tensor.address, tensor.num_bytes).view(kind).reshape(tensor.shape)
    return as_float32(values, tensor.element_type)


def packed(codes: NDArray[np.uint8], shape: tuple[int, int]) -> Tensor:
    """Put bytes of signed codes on the device as int4."""
    return DEVICE.put(codes.reshape(-1), ONNX_TYPES["int4"]).viewed(*shape)


@dataclass(frozen=True)
class Stored:
    """A random matrix [7, columns] as a decoder reads it, and a base."""

    decoder: Decoder
    compute: int

    @property
    def columns(self) -> int:
        return 3 * self.decoder.block_size - (5 if self.decoder.padded else 0)

    @property
    def quantized(self) -> Quantized:
        weight = np.random.default_rng(5).standard_normal((7, self.columns), np.float32) + np.float32(0.3)
        each = self.decoder
        return quantize(weight, each.bits, each.block_size, np.float16, asymmetric=each.zeros)

    @property
    def base(self) -> NDArray[np.float32]:
        values = np.random.default_rng(6).standard_normal((7, self.columns), np.float32)
        return as_float32(in_type(values, self.compute), self.compute)

    def expected(self) -> NDArray[np.float32]:
        """In the type of the graph: the weight is rounded, and so is its sum with the base."""
        weight = dequantize(self.quantized, self.decoder.bits, self.columns)
        dtype = np.float16 if self.compute == FLOAT16 else np.float32
        weight = weight.astype(dtype)
        return (self.base.astype(dtype) + weight if self.decoder.add else weight).astype(np.float32)

    def inputs(self) -> dict[str, Tensor | NDArray[np.int64]]:
        decoder, quantized = self.decoder, self.quantized
        codes = signed(quantized.codes, decoder.bits)
        rows, blocks, _ = codes.shape
        wide = blocks * decoder.block_size
        scales = DEVICE.put(quantized.scales, FLOAT16)
        found: dict[str, Tensor | NDArray[np.int64]] = {names.SCALES: scales}
        if decoder.bits == 8:
            found[names.CODES] = DEVICE.put(codes, 3).viewed(rows * blocks, decoder.block_size)
            found[names.SCALES] = scales.viewed(rows * blocks)
        else:
            found[names.CODES] = packed(codes, (rows, wide))
        if quantized.zeros is not None:
            flat = np.pad(quantized.zeros.reshape(-1), (0, quantized.zeros.size % 2))
            found[names.ZEROS] = packed(signed(pack(flat, 4), 4), (rows, blocks))
        if decoder.add:
            found[names.BASE] = self.viewed(DEVICE.put(in_type(self.base, self.compute), self.compute))
        if decoder.padded:
            found[names.NUM_COLUMNS] = np.array([self.columns])
            if decoder.bits == 8:
                found[names.NUM_ROWS] = np.array([rows])
        return found

    def viewed(self, tensor: Tensor) -> Tensor:
        """Of a matrix [7, columns]: as the graph has it."""
        whole = self.decoder.bits == 8 and not self.decoder.padded
        return tensor.viewed(21, self.decoder.block_size) if whole else tensor


def run(model: ir.Model, stored: Stored, *, over_base: bool = False) -> NDArray[np.float32]:
    inputs = stored.inputs()
    blank = DEVICE.put(
        in_type(np.full((7, stored.columns), np.nan, np.float32), stored.compute), stored.compute
    )
    base = inputs.get(names.BASE)
    target = base if over_base and isinstance(base, Tensor) else stored.viewed(blank)
    run_graph(session(model), inputs, {names.WEIGHT: target}, DEVICE)
    return read(target).reshape(7, stored.columns)


def test_there_are_decoders_of_every_kind() -> None:
    kinds = {(each.bits, each.zeros, each.add, each.padded) for each in DECODERS}
    coded = {(8, False, False), (8, False, True), (4, False, False), (4, True, False), (4, False, True)}
    assert kinds == {(*each, padded) for each in coded for padded in (False, True)}


@every_decoder
@every_variant
def test_a_decoder_equals_numpys_dequantization(decoder: Decoder, shape: Shape) -> None:
    stored = Stored(decoder, int(shape.compute))
    model = decoder_graph(decoder, ir.DataType.FLOAT16, shape)
    np.testing.assert_array_equal(run(model, stored), stored.expected())


@pytest.mark.parametrize("decoder", [each for each in DECODERS if each.add], ids=lambda each: each.name)
@every_variant
def test_a_sum_may_be_written_over_its_base(decoder: Decoder, shape: Shape) -> None:
    """The reference's weights are in the scratch where the policy's come."""
    stored = Stored(decoder, int(shape.compute))
    model = decoder_graph(decoder, ir.DataType.FLOAT16, shape)
    np.testing.assert_array_equal(run(model, stored, over_base=True), stored.expected())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_cast_changes_no_value(kind: str) -> None:
    values = np.random.default_rng(5).standard_normal((7, 33), np.float32)
    stored = DEVICE.put(in_type(values, ONNX_TYPES[kind]), ONNX_TYPES[kind])
    target = DEVICE.put(np.zeros((7, 33), np.float32), FLOAT)
    model = cast_graph(ir.DataType(ONNX_TYPES[kind]), IN_FP32)
    run_graph(session(model), {names.CODES: stored}, {names.WEIGHT: target}, DEVICE)
    np.testing.assert_array_equal(read(target), read(stored))


# The head

VOCABULARY = 250
TARGET_ROWS = np.array([[0, 0], [0, 99], [1, 100], [2, 249], [2, 17], [1, 200]])
CHOSEN = np.array([4, 0, 2])


def head_logprobs(
    model: ir.Model, compute: int, hidden: NDArray[np.float32], table: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Log-probs of the targets among the chosen rows, from tiles of 100, 100 and 50 tokens."""
    opened = session(model)
    parts = []
    for start, stop in pairwise((0, 100, 200, VOCABULARY)):
        part = np.empty((len(TARGET_ROWS), 2, 1), np.float32)
        inputs: dict[str, Tensor | NDArray[np.int64]] = {
            HIDDEN: DEVICE.put(in_type(hidden, compute), compute),
            names.TILE_WEIGHT: DEVICE.put(in_type(table[start:stop], compute), compute),
            CHUNK_ROWS: CHOSEN,
            TARGETS: TARGET_ROWS,
            names.START: np.array([0, start]),
            names.END: np.array([1 << 62, stop - start - 1]),
        }
        run_graph(opened, inputs, {PARTS: part}, DEVICE)
        parts.append(part)
    return logprobs_of(np.concatenate(parts, axis=2))


@pytest.mark.parametrize(
    ("shape", "fp32_logits", "bound"),
    [(IN_FP32, False, 2e-6), (SHAPE, True, 2e-6), (SHAPE, False, 2e-2)],
    ids=["fp32", "fp32-logits", "fp16"],
)
def test_tiles_of_any_size_give_the_logprobs_of_the_whole_head(
    shape: Shape, bound: float, *, fp32_logits: bool
) -> None:
    """Logits in fp32 of 16-bit inputs are as exact as those of fp32 ones."""
    compute = int(shape.compute)
    random = np.random.default_rng(8)
    hidden, table = (
        as_float32(in_type(random.standard_normal((rows, 64), np.float32), compute), compute)
        for rows in (5, VOCABULARY)
    )
    logits = hidden[CHOSEN].astype(np.float64) @ table.T.astype(np.float64)
    logits -= np.log(np.exp(logits - logits.max()).sum(axis=1, keepdims=True)) + logits.max()
    found = head_logprobs(generic_head_tile(shape, fp32_logits=fp32_logits), compute, hidden, table)
    assert np.abs(found - logits[tuple(TARGET_ROWS.T)]).max() < bound * np.abs(logits).max()

"""A lossless matrix in the weight file: the cheaper form, the same bits, never larger than two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from testing.hypothesis_profiles import examples

from stepscore.engine.cuda.lossless import LosslessDifference, decode
from stepscore.errors import CheckpointCorrupt
from stepscore_export.weights import row_blocks
from stepscore_export.weights.layout import LosslessMatrix, TwoFloatMatrices
from stepscore_export.weights.lossless import store_lossless
from stepscore_export.weights.row_blocks import RowStack
from stepscore_export.weights.weight_file import InMemory, SizeOnly

BFLOAT16, FLOAT16 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16
NUMPY: dict[ir.DataType, Any] = {BFLOAT16: ml_dtypes.bfloat16, FLOAT16: np.float16}


@dataclass(frozen=True)
class OneMatrix:
    """A checkpoint of one matrix."""

    values: NDArray[np.float32]

    def shape(self, _name: str) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, _name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self.values[start:stop]


def stack(values: NDArray[np.float32], counted: list[int] | None = None) -> RowStack:
    advance = (lambda _count: None) if counted is None else counted.append
    return RowStack(cast("Any", OneMatrix(values)), ("m",), advance)


def models(
    apart: float, dtype: ir.DataType, rows: int = 24
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A matrix and one that differs by a share of it, both exact in the type."""
    random = np.random.default_rng(3)
    reference, noise = (random.standard_normal((rows, 50), np.float32) for _ in range(2))
    policy = reference + np.float32(apart) * noise
    return tuple(each.astype(NUMPY[dtype]).astype(np.float32) for each in (reference, policy))  # type: ignore[return-value]


def bits(values: NDArray[Any], dtype: ir.DataType) -> NDArray[np.uint16]:
    return np.ascontiguousarray(values.astype(NUMPY[dtype])).view(np.uint16)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize(
    ("apart", "form"), [(0.0, LosslessMatrix), (1e-3, LosslessMatrix), (3.0, TwoFloatMatrices)]
)
def test_the_cheaper_form_is_stored_and_both_models_are_there_bit_for_bit(
    dtype: ir.DataType, apart: float, form: type
) -> None:
    reference, policy = models(apart, dtype)
    file = InMemory()
    stored = store_lossless(file, "m", stack(reference), stack(policy), dtype)
    assert isinstance(stored, form)
    patterns = file.arrays["m.reference"].view(np.uint16)
    np.testing.assert_array_equal(patterns, bits(reference, dtype))
    if isinstance(stored, TwoFloatMatrices):
        np.testing.assert_array_equal(file.arrays["m.policy"].view(np.uint16), bits(policy, dtype))
        return
    parts = (file.arrays[f"m.{name}"] for name in ("flags", "codes", "starts", "escapes"))
    rebuilt = np.empty_like(patterns)
    decode(patterns, LosslessDifference(*parts), rebuilt)
    np.testing.assert_array_equal(rebuilt, bits(policy, dtype))


@examples(40)
@given(st.floats(0, 4), st.sampled_from([BFLOAT16, FLOAT16]), st.sampled_from([40, 300, 1 << 20]))
def test_an_estimate_is_an_upper_bound_and_blocks_change_no_byte(
    apart: float, dtype: ir.DataType, elements: int
) -> None:
    """An estimate reads no weights: it takes two models."""
    reference, policy = models(apart, dtype, rows=400)
    with pytest.MonkeyPatch.context() as patch:
        whole, cut, size = InMemory(), InMemory(), SizeOnly()
        store_lossless(whole, "m", stack(reference), stack(policy), dtype)
        patch.setattr(row_blocks, "BLOCK_ELEMENTS", elements)
        store_lossless(cut, "m", stack(reference), stack(policy), dtype)
        store_lossless(size, "m", stack(reference), stack(policy), dtype)
    assert whole.arrays.keys() == cut.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array.view(np.uint8), cut.arrays[name].view(np.uint8))
    assert sum(array.nbytes for array in whole.arrays.values()) <= size.num_bytes


@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_every_weight_counts_once_as_progress(apart: float) -> None:
    """The policy is read again where it is stored as it is."""
    reference, policy = models(apart, BFLOAT16)
    counted: list[int] = []
    store_lossless(InMemory(), "m", stack(reference, counted), stack(policy, counted), BFLOAT16)
    assert sum(counted) == reference.size + policy.size


@pytest.mark.parametrize("which", ["reference", "policy"])
def test_a_value_that_the_type_does_not_hold_is_refused(which: str) -> None:
    pair = dict(zip(("reference", "policy"), models(1e-3, BFLOAT16), strict=True))
    pair[which] = pair[which] + np.float32(1e-4)
    with pytest.raises(CheckpointCorrupt, match="m holds values that bfloat16 does not") as refused:
        store_lossless(InMemory(), "m", stack(pair["reference"]), stack(pair["policy"]), BFLOAT16)
    assert refused.value.hint == "export without --coding difference"


def test_what_is_not_a_number_comes_back_too() -> None:
    reference, policy = models(1e-3, BFLOAT16)
    policy[0, :3] = np.nan, np.inf, -np.inf
    file = InMemory()
    store_lossless(file, "m", stack(reference), stack(policy), BFLOAT16)
    parts = (file.arrays[f"m.{name}"] for name in ("flags", "codes", "starts", "escapes"))
    patterns = file.arrays["m.reference"].view(np.uint16)
    rebuilt = np.empty_like(patterns)
    decode(patterns, LosslessDifference(*parts), rebuilt)
    np.testing.assert_array_equal(rebuilt, bits(policy, BFLOAT16))

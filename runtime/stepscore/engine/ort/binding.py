"""OrtValues: bind inputs and outputs by name, allocate outputs, copy to numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import SCORED_AXIS
from stepscore.batching.batch import Batch
from stepscore.batching.kept_prefixes import Keeping
from stepscore.engine.ort.sessions import Sessions, naming_faults
from stepscore.enums import Provider

Values = dict[str, ort.OrtValue]


_ELEMENTS = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}
"""ONNX element types of outputs; numpy has no bfloat16."""


def run_bound(
    session: ort.InferenceSession, arrays: Mapping[str, NDArray[Any]], values: Values, outputs: Values
) -> None:
    """Run a graph on host arrays and OrtValues; write into `outputs`."""
    with naming_faults("run a graph"):
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        binding.synchronize_inputs()  # copies to a GPU finish before another stream reads them
        session.run_with_iobinding(binding)


def axis_sizes(batch: Batch, keeping: Keeping | None = None) -> dict[str, int]:
    """Return the graphs' named axes: n computed tokens, m scored ones of them, s with given ones.

    And q kept ones, if any are to be kept.
    """
    sizes = {"n": len(batch.input_ids), "m": len(batch.score_index), SCORED_AXIS: batch.num_scored}
    return sizes if keeping is None else sizes | {"q": len(keeping.computed)}


def allocate_outputs(session: ort.InferenceSession, sizes: Mapping[str, int], device: str) -> Values:
    """Allocate a graph's outputs; `sizes` are the lengths of its named axes, without which none is read.

    Outputs allocated by ONNX Runtime keep the session alive, and with it the weights of a released layer.
    """
    return {
        output.name: ort.OrtValue.ortvalue_from_shape_and_type(
            [sizes[axis] if isinstance(axis, str) else axis for axis in output.shape],
            _ELEMENTS[output.type],
            device,
        )
        for output in session.get_outputs()
        if all(axis in sizes for axis in output.shape if isinstance(axis, str))
    }


# y = Cast(x, float32) of bfloat16 x [m, k], opset 21.
WIDENING_MODEL = (
    b'\x08\x08:J\n\x17\n\x01x\x12\x01y"\x04Cast*\t\n\x02to\x18\x01\xa0\x01\x02\x12\x01g'
    b"Z\x15\n\x01x\x12\x10\n\x0e\x08\x10\x12\n\n\x03\x12\x01m\n\x03\x12\x01k"
    b"b\x15\n\x01y\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01k"
    b"B\x04\n\x00\x10\x15"
)


def as_numpy(value: ort.OrtValue) -> NDArray[np.floating]:
    """Copy a tensor [m, k] to the host; bfloat16, which numpy lacks, is converted to float32."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    session = Sessions(Provider(value.device_name().lower())).open(WIDENING_MODEL)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    (wide,) = binding.copy_outputs_to_cpu()
    return np.asarray(wide)

"""What an export will need, from the checkpoint's header alone: `stepscore export --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.choices import Precision
from stepscore_export.head import TILE
from stepscore_export.layout import UnitWeights, tensors
from stepscore_export.model import BLOCK_ELEMENTS, Members, store_unit
from stepscore_export.options import ExportOptions
from stepscore_export.pair import unit_members
from stepscore_export.weights import SizeOnly

# Parameters of both models a second, self-test included, on two cores: benchmarks/results/memory_export.json.
PARAMETERS_PER_SECOND = {
    Precision.FP32: 34e6,
    Precision.FP16: 34e6,
    Precision.BF16: 34e6,
    Precision.INT8: 25e6,
    Precision.INT4: 25e6,
}
BASE_BYTES = 150 << 20  # Python, numpy, ONNX Runtime
CONVERTED_COPIES = 10  # of a row block: as read, as float32, scaled, rounded, packed


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes, time in seconds; `weight_bytes` by the folder of the unit."""

    parameters: int
    source_bytes: int
    weight_bytes: dict[str, int]
    memory_bytes: int
    seconds: float

    @property
    def disk_bytes(self) -> int:
        """Space that must be free where the pair goes; graphs and tokenizer are a few MB."""
        return sum(self.weight_bytes.values())


def estimate(checkpoints: Members, options: ExportOptions) -> Estimate:
    """Predict weight files to the byte, memory and time roughly; the options must be settled."""
    parameters = sum(model.parameters() for model in checkpoints.values())
    units = {
        folder: _laid_out(members, options) for folder, members in unit_members(checkpoints, options).items()
    }
    return Estimate(
        parameters=parameters,
        source_bytes=sum(model.num_bytes() for model in checkpoints.values()),
        weight_bytes={folder: num_bytes for folder, (num_bytes, _) in units.items()},
        memory_bytes=max(_memory_bytes(weights, checkpoints) for _, weights in units.values()),
        seconds=parameters / PARAMETERS_PER_SECOND[options.precision],
    )


def _laid_out(members: Members, options: ExportOptions) -> tuple[int, UnitWeights]:
    """Run the export without its data: nothing is read but headers."""
    sink = SizeOnly()
    weights = store_unit(members, sink, options, lambda _count: None)
    return sink.num_bytes, weights


def _memory_bytes(weights: UnitWeights, checkpoints: Members) -> int:
    """Return the expected peak, which is that of the self-test.

    It opens one layer, or the head, at a time: the weights as stored (mapped pages count) and one matrix or
    tile of the head in fp32. The allocator still keeps what the conversion of row blocks needed.
    """
    converting = CONVERTED_COPIES * 4 * BLOCK_ELEMENTS
    stored = max(_num_bytes(part) for part in (*weights.layers, weights.head))
    config = checkpoints["policy"].config
    widest = max(config.intermediate_size, min(TILE, config.vocab_size)) * config.hidden_size
    return BASE_BYTES + converting + stored + 4 * widest


def _num_bytes(part: object) -> int:
    return sum(tensor.num_bytes for tensor in tensors(part))

"""The backend of bitsandbytes' weights, quantized and saved by transformers itself."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import onnx_ir as ir
from safetensors import SafetensorError

from stepscore.artifact.manifest import CONFIG, Distance
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.engine import PACKAGES, require_packages
from stepscore.enums import Coding, Exporter, Format, Precision
from stepscore.errors import ExportError, OutputUnwritable
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.backends.base import Backend, ExportEstimate, Progress, Storage, StoredUnit
from stepscore_export.checkpoint.weight_source import Members, WeightSource
from stepscore_export.families.base import EMBEDDING, tensor_shapes
from stepscore_export.families.transformers_settings import transformers_settings
from stepscore_export.options import BitsandbytesOptions
from stepscore_export.quantization.error_propagation import Statistics
from stepscore_export.staging import Stage
from stepscore_export.weights.row_blocks import Advance

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64
"""Weights that share a scale at 4 bits, transformers' choice; at 8 bits it is a row."""
BASE_BYTES = 450 << 20  # Python, torch, transformers, bitsandbytes, onnxruntime, a tokenizer
# Of both models, as measured on an ONNX pair of 2 x 7.6 B: most of it is running checkpoints and pair.
PARAMETERS_PER_SECOND = 8e6


@dataclass(frozen=True, slots=True)
class BitsandbytesBackend(Backend[None]):
    """Each model as transformers saves it, its layers quantized by bitsandbytes; PyTorch runs it."""

    options: BitsandbytesOptions

    def require(self) -> None:
        """Raise ProviderUnavailable unless torch, transformers, accelerate and bitsandbytes are installed."""
        require_packages()

    def resolve(self, distance: Distance, *, calibrated: bool) -> Self:
        """Return the same backend, whose options leave nothing open; ExportError for a calibration."""
        if calibrated:
            raise ExportError(
                "--calibration is not supported with --format bitsandbytes",
                hint="drop --calibration, or use --format onnx",
            )
        return self

    @property
    def reader(self) -> str:
        """What needs transformers to read the folders of the checkpoints."""
        return "--format bitsandbytes"

    @property
    def storage(self) -> Storage:
        """What the manifest says of the pair."""
        return Storage(
            format=Format.BITSANDBYTES,
            exporter=Exporter.STEPSCORE,
            precision=self.options.precision,
            block_size=BLOCK_SIZE,
            target=None,
            coding=Coding.INDEPENDENT,
            difference=None,
            beta=self.options.beta,
            packages=PACKAGES,
        )

    def describe(self) -> str:
        """Return library and precision."""
        return f"bitsandbytes {self.options.precision}, each model quantized alone"

    def estimate(self, checkpoints: Members, batch_tokens: int) -> ExportEstimate:
        """Predict weight files closely, memory and time roughly; a model is loaded whole."""
        sizes: dict[str, int] = {}
        peak = 0
        for name, checkpoint in checkpoints.items():
            sizes[name] = weight_bytes(checkpoint, self.options.precision)
            peak = max(peak, checkpoint.num_bytes() + sizes[name])
        return ExportEstimate.of(checkpoints, sizes, BASE_BYTES + peak, PARAMETERS_PER_SECOND)

    def prepare(self, checkpoints: Members, progress: Progress) -> None:
        """Leave everything to `store`: transformers loads and quantizes in one step."""

    def store(
        self, staged: Stage, folder: str, members: Members, statistics: Statistics, advance: Advance
    ) -> StoredUnit[None]:
        """Load one model, quantized on the way, and have transformers save it into the stage."""
        (checkpoint,) = members.values()
        with checkpoint.naming():
            write_model(staged, folder, checkpoint, self.options.precision)
        advance(checkpoint.parameters())
        return StoredUnit(folder, members, None, {})

    def graphs(self, unit: StoredUnit[None]) -> Iterator[tuple[str, ir.Model]]:
        """Give none: PyTorch runs transformers' code."""
        return iter(())


def weight_bytes(checkpoint: WeightSource, precision: Precision) -> int:
    """Return the bytes of a model's tensors, names and headers aside.

    At 8 bits a matrix of a layer has a byte per weight and a float per row, at 4 bits half a byte per weight
    and a float per 64 weights; everything else stays in the type that the checkpoint's embedding has.
    """
    size = checkpoint.dtype(EMBEDDING).itemsize
    total = 0
    for name, shape in tensor_shapes(checkpoint.config).items():
        count = math.prod(shape)
        if len(shape) < 2 or name in {EMBEDDING, checkpoint.head_name}:
            total += size * count
        elif precision is Precision.INT8:
            total += count + 4 * shape[0]
        else:
            total += math.ceil(count / 2) + 4 * math.ceil(count / BLOCK_SIZE)
    return total


def write_model(staged: Stage, name: str, checkpoint: WeightSource, precision: Precision) -> None:
    """Save one model's folder into the stage and register its files."""
    import torch  # noqa: PLC0415
    from transformers import GenerationConfig  # noqa: PLC0415

    model = loading.from_pretrained(
        checkpoint.folder,
        transformers_settings(checkpoint.family, checkpoint.config),
        dtype=getattr(torch, checkpoint.dtype(EMBEDDING).name),
        device_map={"": "cpu"},
        quantization=_quantization(precision),
    )
    # Generation settings are not used here, and those of some checkpoints fail validation when saved.
    model.generation_config = GenerationConfig()
    folder = staged.folder / name
    try:
        with os_errors_as_output_errors(folder):
            model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OutputUnwritable(f"cannot write {folder}: {error}", hint="free space") from None
    del model
    gc.collect()
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG or ".safetensors" in path.suffixes:
            path.chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it its owner's alone
            staged.register(path)
        else:
            path.unlink()


def _quantization(precision: Precision) -> Any:
    import torch  # noqa: PLC0415
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    if precision is Precision.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute: torch.dtype = torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=precision.value, bnb_4bit_compute_dtype=compute
    )

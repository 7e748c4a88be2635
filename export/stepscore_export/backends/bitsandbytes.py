"""Two checkpoints -> one sealed pair of bitsandbytes' weights, quantised and saved by transformers itself."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from stepscore.artifact.manifest import CONFIG
from stepscore.engine.pytorch import loading
from stepscore.enums import Precision
from stepscore.errors import OutputUnwritable
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.backends.base import ExportEstimate
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members
from stepscore_export.families.base import EMBEDDING, tensor_shapes
from stepscore_export.options import BitsandbytesOptions
from stepscore_export.staging import Stage

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64
"""Weights that share a scale at four bits, transformers' choice; at eight it is a row."""
BASE_BYTES = 450 << 20  # Python, torch, transformers, bitsandbytes, onnxruntime, a tokenizer
# Of both models, as an ONNX pair of 2 x 7.6 B took: running checkpoints and pair on the texts is most of it.
PARAMETERS_PER_SECOND = 8e6


def estimate_bitsandbytes(checkpoints: Members, options: BitsandbytesOptions) -> ExportEstimate:
    """Predict weight files closely, memory and time roughly."""
    parameters = sum(model.parameters() for model in checkpoints.values())
    stored: dict[str, int] = {
        name: weight_bytes(model, options.precision) for name, model in checkpoints.items()
    }
    return ExportEstimate(
        parameters=parameters,
        source_bytes=sum(model.num_bytes() for model in checkpoints.values()),
        weight_bytes=stored,
        memory_bytes=BASE_BYTES
        + max(model.num_bytes() + stored[name] for name, model in checkpoints.items()),
        seconds=parameters / PARAMETERS_PER_SECOND,
    )


def weight_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Return the bytes of a model's tensors, names and headers aside.

    A matrix of a layer has a byte a weight and a float a row, or half a byte a weight and a float for 64;
    everything else stays in the type that the checkpoint has its embedding in.
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


def write_model(staged: Stage, name: str, checkpoint: Checkpoint, precision: Precision) -> None:
    """Save one model's folder into the stage, and take note of its files."""
    import torch  # noqa: PLC0415
    from transformers import GenerationConfig  # noqa: PLC0415

    model = loading.from_pretrained(
        checkpoint.folder,
        dtype=getattr(torch, checkpoint.dtype(EMBEDDING).name),
        device_map={"": "cpu"},
        quantization=_quantization(precision),
    )
    # Nothing is generated here, and a checkpoint's own settings for it may be ones that cannot be saved.
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
            path.chmod((folder / CONFIG).stat().st_mode)  # safetensors writes for its owner alone
            staged.take(path)
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

"""Scores with PyTorch: the model class of transformers, as it is commonly run.

SDPA attention, eval mode, no gradients; one sequence at a time, so that nothing is padded; one model at a
time, so that a pair needs no more memory than one model. torch and transformers are imported when used.
"""

from __future__ import annotations

import enum
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepscore.engine.pytorch.loading import Device, from_pretrained, memory_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stepscore_export.checkpoint.weight_source import WeightSource

HEAD_ROWS = 512
"""Tokens per matmul of the head: [512, 152064] logits are 311 MB in fp32, [4096, 152064] would be 2.5 GB."""


class DType(enum.StrEnum):
    """Precision of PyTorch."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


_TORCH_NAMES = {DType.FP32: "float32", DType.FP16: "float16", DType.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class Run:
    """One model's log-probs, float64 [L-1] per sequence, and the seconds they took without loading."""

    logprobs: list[NDArray[np.float64]]
    seconds: float


def score(
    checkpoint: WeightSource,
    sequences: Sequence[NDArray[np.int64]],
    *,
    dtype: DType,
    device: Device,
    progress: Callable[[], object] = lambda: None,
) -> Run:
    """Return the log-probs of each sequence under a checkpoint, of which the folder and config are used.

    `[j] = log p(F[j+1] | F[..j])`, nats, normalized in fp32 over all vocab_size columns whatever `dtype` the
    model has. The first sequence is scored once before, as an untimed warm-up. `progress` is called after
    each sequence. The model's memory is released on return.
    """
    import torch  # noqa: PLC0415

    with memory_errors(device, "use --dtype bf16 or fp16, or --device cpu"), torch.no_grad():
        run = _score(checkpoint, sequences, dtype, device, progress)
    gc.collect()
    if device is Device.CUDA:
        torch.cuda.empty_cache()
    return run


def _score(
    checkpoint: WeightSource,
    sequences: Sequence[NDArray[np.int64]],
    dtype: DType,
    device: Device,
    progress: Callable[[], object],
) -> Run:
    import torch  # noqa: PLC0415

    from stepscore_export.families.transformers_settings import (  # noqa: PLC0415
        transformers_settings,  # imports numpy, which --help does without
    )

    settings = transformers_settings(checkpoint.family, checkpoint.config)
    model = from_pretrained(checkpoint.folder, settings, dtype=getattr(torch, _TORCH_NAMES[dtype]))
    model.to(device.value)
    _logprobs(model, sequences[0])
    outputs = []
    seconds = 0.0
    for token_ids in sequences:
        started = time.perf_counter()
        outputs.append(_logprobs(model, token_ids))
        seconds += time.perf_counter() - started
        progress()
    return Run(outputs, seconds)


def _logprobs(model: Any, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-probs on the host; copying them waits for the device, so that times are right."""
    import torch  # noqa: PLC0415

    ids = torch.from_numpy(token_ids).to(model.device)
    hidden = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
    parts = [
        model.lm_head(rows).float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        for rows, targets in zip(hidden.split(HEAD_ROWS), ids[1:].split(HEAD_ROWS), strict=True)
    ]
    logprobs: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return logprobs

"""transformers, run as the EurusPRM model card runs it: full logits, log_softmax, gather.

One sequence at a time, or several padded on the right under an attention mask. Logits of all tokens over the
vocabulary are materialized; log_softmax is taken sequence by sequence, because a second copy of a whole
padded batch would not fit in 24 GB.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.peers.contender import Checkpoints, SequenceLogprobs, Tokens

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM


class TorchPrecision(enum.StrEnum):
    """Precision of weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8 (bitsandbytes)"
    NF4 = "nf4 (bitsandbytes)"


@dataclass(frozen=True, slots=True)
class TransformersCard:
    """transformers at one precision; `batch_size` sequences are padded to the longest of them."""

    threads: int
    precision: TorchPrecision = TorchPrecision.FP32
    batch_size: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Return the name in tables."""
        how = "one at a time" if self.batch_size == 1 else f"padded batches of {self.batch_size}"
        return f"transformers {self.precision}, {how}"

    def prepare(self, models: Checkpoints) -> None:
        """Do nothing: the checkpoints are loaded directly."""

    def load(self, models: Checkpoints) -> LoadedTransformers:
        """Load both models, with the number of PyTorch threads set."""
        import torch  # noqa: PLC0415 - an extra, and seconds to import

        torch.set_num_threads(self.threads)
        return LoadedTransformers(self._model(models.policy), self._model(models.reference), self.batch_size)

    def _model(self, folder: Path) -> Qwen2ForCausalLM:
        from transformers import Qwen2ForCausalLM  # noqa: PLC0415

        model = Qwen2ForCausalLM.from_pretrained(folder, **_storage(self.precision)).eval()
        return model if model.device.type == self.device else model.to(self.device)


@dataclass(frozen=True, slots=True)
class LoadedTransformers:
    """Both models, for inference."""

    policy: Qwen2ForCausalLM
    reference: Qwen2ForCausalLM
    batch_size: int

    def logprobs(self, sequences: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score batch by batch, each with both models."""
        scored: list[SequenceLogprobs] = []
        for first in range(0, len(sequences), self.batch_size):
            batch = sequences[first : first + self.batch_size]
            scored += zip(
                padded_logprobs(self.policy, batch), padded_logprobs(self.reference, batch), strict=True
            )
        return scored


def padded_logprobs(model: Qwen2ForCausalLM, sequences: Sequence[Tokens]) -> list[np.ndarray]:
    """Return the log-probs float32 [L-1] of each sequence, all of them in one forward pass."""
    import torch  # noqa: PLC0415

    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        on_device = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = model(**on_device, use_cache=False).logits
        return [_gathered(row[: len(each)], each) for row, each in zip(logits, sequences, strict=True)]


def _gathered(logits: torch.Tensor, tokens: Tokens) -> np.ndarray:
    import torch  # noqa: PLC0415

    logprobs = logits[:-1].log_softmax(dim=-1)
    targets = torch.from_numpy(tokens)[1:, None].to(logprobs.device)
    return logprobs.gather(1, targets)[:, 0].float().cpu().numpy()


def _storage(precision: TorchPrecision) -> dict[str, Any]:
    """Return the precision's arguments of `from_pretrained`."""
    import torch  # noqa: PLC0415
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    match precision:
        case TorchPrecision.FP32:
            return {"dtype": torch.float32}
        case TorchPrecision.BF16:
            return {"dtype": torch.bfloat16}
        case TorchPrecision.FP16:
            return {"dtype": torch.float16}
        case TorchPrecision.INT8:
            config = BitsAndBytesConfig(load_in_8bit=True)
        case TorchPrecision.NF4:
            config = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
            )
    return {"dtype": torch.float16, "quantization_config": config, "device_map": "cuda"}

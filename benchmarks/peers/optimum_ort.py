"""ONNX Runtime through optimum: ORTModelForCausalLM on the fp32 graph that optimum exports, no KV cache.

One sequence at a time, which is faster on a CPU: padding costs more than a larger batch gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.contender import Checkpoints, SequenceLogprobs, Tokens
from benchmarks.peers.transformers_card import padded_logprobs

if TYPE_CHECKING:
    from optimum.onnxruntime import ORTModelForCausalLM


@dataclass(frozen=True, slots=True)
class OptimumOrt:
    """optimum's export and session, on the CPU."""

    threads: int

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return "ORTModelForCausalLM (optimum) fp32, one at a time"

    def prepare(self, models: Checkpoints) -> None:
        """Export both models if that has not been done."""
        from optimum.onnxruntime import ORTModelForCausalLM  # noqa: PLC0415 - an extra

        for checkpoint in (models.policy, models.reference):
            exported = _exported(models, checkpoint)
            if not exported.is_dir():
                made = ORTModelForCausalLM.from_pretrained(checkpoint, export=True, use_cache=False)
                made.save_pretrained(exported)

    def load(self, models: Checkpoints) -> LoadedOptimum:
        """Open both graphs."""
        policy, reference = (
            _open(_exported(models, checkpoint), self.threads)
            for checkpoint in (models.policy, models.reference)
        )
        return LoadedOptimum(policy, reference)


@dataclass(frozen=True, slots=True)
class LoadedOptimum:
    """Both graphs; they are called like transformers models."""

    policy: ORTModelForCausalLM
    reference: ORTModelForCausalLM

    def logprobs(self, sequences: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score the sequences one by one, each with both models."""
        return [
            (padded_logprobs(self.policy, [each])[0], padded_logprobs(self.reference, [each])[0])
            for each in sequences
        ]


def _exported(models: Checkpoints, checkpoint: Path) -> Path:
    return models.scratch / f"optimum-{checkpoint.name}"


def _open(exported: Path, threads: int) -> ORTModelForCausalLM:
    import onnxruntime as ort  # noqa: PLC0415
    import torch  # noqa: PLC0415 - seconds to import
    from optimum.onnxruntime import ORTModelForCausalLM  # noqa: PLC0415 - an extra

    torch.set_num_threads(threads)  # log_softmax over the logits
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForCausalLM.from_pretrained(
        exported, use_cache=False, provider="CPUExecutionProvider", session_options=options
    )

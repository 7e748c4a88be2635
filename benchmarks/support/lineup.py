"""Rounds of the throughput benchmark: which engines alternate, stepscore's forms and peers, by provider.

A round has as many engines as fit in memory. The default form is in every round, so that ratios are taken
within one; the first engine of the first round is the truth, if it is a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contender import Contender
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.optimum_ort import OptimumOrt
from benchmarks.peers.stepscore_pair import StepscorePair
from benchmarks.peers.transformers_card import TorchPrecision, TransformersCard
from benchmarks.support.forms import BF16, EXACT, FP16, FP32, default_form
from benchmarks.support.rates import Aim
from benchmarks.support.workloads import PADDED_BATCH, Workload

from stepscore.enums import Provider


@dataclass(frozen=True, slots=True)
class Lineup:
    """Pairs of all forms, and the number of threads of every engine."""

    provider: Provider
    pairs: Mapping[str, Path]
    threads: int
    peers: bool
    half: bool = True
    """Include PyTorch fp16 and bf16 on the CPU; they are slow on CPUs without such kernels."""

    @property
    def default(self) -> StepscorePair:
        """Return stepscore in its default form."""
        return self.form(default_form(self.provider))

    def form(self, form: str, *, share: bool = True) -> StepscorePair:
        """Return stepscore in one form."""
        return StepscorePair(form, self.pairs[form], self.threads, share)

    def card(self, precision: TorchPrecision, batch_size: int = 1) -> TransformersCard:
        """Return transformers, run as the model card runs it."""
        return TransformersCard(self.threads, precision, batch_size, self.provider.value)

    def rounds(self, workload: Workload) -> list[list[Contender]]:
        """Return the engines of each round."""
        several = len(workload.sequences) > 1
        if not self.peers:
            return [[self.form(form) for form in self.pairs]]
        if self.provider is Provider.CUDA:
            return self._rounds_on_cuda(several)
        default = self.default
        exact, fp32 = ([self.form(each)] if each in self.pairs else [] for each in (EXACT, FP32))
        card = self.card(TorchPrecision.FP32)
        llama = LlamaCpp(self.threads, max(map(len, workload.sequences)))
        optimum = OptimumOrt(self.threads)
        if several:  # logits of a padded batch leave no memory for a third engine
            padded = self.card(TorchPrecision.FP32, PADDED_BATCH)
            return [[padded, default], [default, *exact, llama], [default, optimum], [default, *fp32, card]]
        half = [[default, self.card(TorchPrecision.FP16), self.card(TorchPrecision.BF16)]] * self.half
        rest = [[default, *fp32]] if fp32 else []
        return [[card, default, *exact, llama], [default, optimum], *rest, *half]

    def _rounds_on_cuda(self, several: bool) -> list[list[Contender]]:
        default, fp16, bf16 = self.default, self.form(FP16), self.form(BF16)
        padded = [[default, self.card(TorchPrecision.FP16, PADDED_BATCH)]] * several
        return [
            [self.card(TorchPrecision.FP32), default],
            [default, fp16, self.card(TorchPrecision.FP16)],
            [default, bf16, self.card(TorchPrecision.BF16)],
            [default, self.card(TorchPrecision.INT8), self.card(TorchPrecision.NF4)],
            *padded,
        ]

    def aims(self, workload: Workload) -> list[tuple[Aim, Contender]]:
        """Return the aims on a workload, each with its peer."""
        several, name = len(workload.sequences) > 1, workload.name
        if self.provider is Provider.CUDA:
            return [(Aim(name, "transformers fp16", 2.5), self.card(TorchPrecision.FP16))] * several
        if several:
            padded = self.card(TorchPrecision.FP32, PADDED_BATCH)
            return [
                (Aim(name, "transformers fp32, padded batches of 8", 4), padded),
                (Aim(name, "ORTModelForCausalLM (optimum)", 3), OptimumOrt(self.threads)),
            ]
        llama = LlamaCpp(self.threads, max(map(len, workload.sequences)))
        return [
            (Aim(name, "transformers fp32", 2.2), self.card(TorchPrecision.FP32)),
            (Aim(name, "llama.cpp Q8_0", 4), llama),
            (Aim(name, "transformers bf16", 1.5), self.card(TorchPrecision.BF16)),
        ]

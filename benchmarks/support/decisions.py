"""Error of a row of the format matrix on the bundled problems. Imports torch: not for timed processes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.peers.contender import Checkpoints
from benchmarks.peers.transformers_card import TorchPrecision
from benchmarks.support.formats import ExportedRow, PytorchRow
from parity_tests.support import random_pairs as pairs
from parity_tests.support.bundled_pair import EXAMPLES, PROBLEMS, Problems, fp64_threshold
from parity_tests.support.fp64_reference import Numerics, pair_logprobs
from parity_tests.support.pair_cache import scored

from stepscore.artifact.pair import Pair
from stepscore.engine import open_engine
from stepscore.engine.base import EngineOptions
from stepscore_export.fidelity import Scores, fidelity

NUMERICS = {
    TorchPrecision.FP32: Numerics.PYTORCH_FP32,
    TorchPrecision.FP16: Numerics.PYTORCH_FP16,
    TorchPrecision.BF16: Numerics.PYTORCH_BF16,
}


@dataclass(frozen=True, slots=True)
class Decisions:
    """The bundled problems, and their log-probs in fp64."""

    models: pairs.Models
    problems: Problems
    truth: Scores
    threshold: float

    @classmethod
    def of(cls, limit: int | None) -> Decisions:
        """Score the problems in fp64."""
        torch.set_num_threads(1)  # more threads slow down a model this small
        models = pairs.Models(EXAMPLES / "pair" / "policy", EXAMPLES / "pair" / "reference")
        problems = Problems.read(PROBLEMS, models, limit)
        truth = pair_logprobs(models.policy, models.reference, problems.ids, Numerics.FP64)
        return cls(models, problems, truth, fp64_threshold(models, limit))

    def errors_of(self, row: ExportedRow | PytorchRow, scratch: Path) -> dict[str, float]:
        """Return the errors of a row against fp64."""
        found = fidelity(self._scores(row, scratch), self.truth, self.problems.step_ends, self.threshold)
        return {"log_ratio_error": found.ratio_error, "first_errors": found.first_errors}

    def _scores(self, row: ExportedRow | PytorchRow, scratch: Path) -> Scores:
        models = self.models
        if isinstance(row, PytorchRow):
            return pair_logprobs(models.policy, models.reference, self.problems.ids, NUMERICS[row.precision])
        pair = Pair.open(
            row.export(Checkpoints(models.policy, models.reference, scratch), scratch / "bundled")
        )
        with closing(open_engine(pair, EngineOptions(threads=1))) as engine:
            return scored(engine, self.problems.ids)

"""Everything slow, made once: checkpoints, their truth in fp64, exported pairs, open engines."""

from __future__ import annotations

from pathlib import Path

from parity_tests.pairs import Models, RandomPair
from parity_tests.reference import Numerics, pair_logprobs

from stepscore.artifact import Pair
from stepscore.choices import Precision, Residency
from stepscore.engine import Engine, EngineOptions
from stepscore_export.fidelity import Scores
from stepscore_export.options import ExportOptions
from stepscore_export.pair import export_pair


class Workshop:
    """What the tests ask for, made at the first request and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[RandomPair, Models] = {}
        self._references: dict[tuple[RandomPair, Numerics], Scores] = {}
        self._exports: dict[tuple[Models, Precision], Path] = {}
        self._engines: dict[tuple[Models, Precision, Residency], Engine] = {}

    def models(self, pair: RandomPair) -> Models:
        if pair not in self._models:
            self._models[pair] = pair.write(self._folder / f"models-{len(self._models)}")
        return self._models[pair]

    def reference(self, pair: RandomPair, numerics: Numerics) -> Scores:
        """The reference's log-probs of the pair's own sequences."""
        if (pair, numerics) not in self._references:
            models = self.models(pair)
            scores = pair_logprobs(models.policy, models.reference, pair.sequences(), numerics)
            self._references[pair, numerics] = scores
        return self._references[pair, numerics]

    def exported(self, models: Models, precision: Precision) -> Path:
        if (models, precision) not in self._exports:
            output = self._folder / f"pair-{len(self._exports)}"
            export_pair(models.policy, models.reference, output, ExportOptions(precision=precision))
            self._exports[models, precision] = output
        return self._exports[models, precision]

    def engine(
        self, models: Models, precision: Precision, residency: Residency = Residency.RESIDENT
    ) -> Engine:
        if (models, precision, residency) not in self._engines:
            pair = Pair.open(self.exported(models, precision))
            engine = Engine(pair, EngineOptions(residency=residency, threads=1))
            self._engines[models, precision, residency] = engine
        return self._engines[models, precision, residency]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

"""Everything slow, made once: checkpoints, their truth in fp64, exported pairs, open engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from parity_tests.support.fp64_reference import Numerics, Tokens, pair_logprobs
from parity_tests.support.random_pairs import Models, RandomPair
from testing.shared_folder import SharedFolder, name_of

from stepscore.artifact.pair import Pair
from stepscore.engine.base import Engine, EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Residency
from stepscore_export.fidelity import Scores, as_float64
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS, Texts

BATCH = 16  # sequences: as many as a job runs at once, give or take


class Source(Protocol):
    """What two checkpoints can be made of; equal ones make the same."""

    def write(self, folder: Path) -> Models: ...
    def __hash__(self) -> int: ...


class Workshop:
    """What the tests ask for, made at the first request and kept."""

    def __init__(self, folder: Path) -> None:
        """Keep checkpoints and pairs in `folder`, which several processes may share."""
        self._shared = SharedFolder(folder)
        self._models: dict[Source, Models] = {}
        self._references: dict[tuple[RandomPair, Numerics], Scores] = {}
        self._engines: dict[tuple[Path, Residency], OrtEngine] = {}

    def models(self, pair: Source) -> Models:
        if pair not in self._models:
            folder = self._shared.once(f"models-{name_of(pair)}", pair.write)
            self._models[pair] = Models(folder / "policy", folder / "reference")
        return self._models[pair]

    def reference(self, pair: RandomPair, numerics: Numerics) -> Scores:
        """The reference's log-probs of the pair's own sequences."""
        if (pair, numerics) not in self._references:
            models = self.models(pair)
            scores = pair_logprobs(models.policy, models.reference, pair.sequences(), numerics)
            self._references[pair, numerics] = scores
        return self._references[pair, numerics]

    def exported(self, models: Models, options: ExportOptions, calibration: Texts = NO_TEXTS) -> Path:
        """A pair without a fidelity; its base is calibrated on the texts given."""

        def export(output: Path) -> None:
            policy, reference = models.policy, models.reference
            export_pair(policy, reference, output, options, texts=NO_TEXTS, calibration=calibration)

        return self._shared.once(f"pair-{name_of(models, options, calibration)}", export)

    def engine(
        self,
        models: Models,
        options: ExportOptions,
        residency: Residency = Residency.RESIDENT,
        calibration: Texts = NO_TEXTS,
    ) -> OrtEngine:
        key = self.exported(models, options, calibration), residency
        if key not in self._engines:
            self._engines[key] = OrtEngine(Pair.open(key[0]), EngineOptions(residency=residency, threads=1))
        return self._engines[key]

    def kept(self, scores: Callable[[], Scores], *what: object) -> Scores:
        """Scores of what is named, computed by whichever process asks first."""

        def write(folder: Path) -> None:
            folder.mkdir()
            arrays = (np.stack(both) for both in scores())
            np.savez(folder / "scores.npz", *arrays)

        folder = self._shared.once(f"scores-{name_of(*what)}", write)
        with np.load(folder / "scores.npz") as arrays:
            return [(arrays[name][0], arrays[name][1]) for name in arrays.files]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


def scored(engine: Engine, sequences: Sequence[Tokens]) -> Scores:
    """The log-probs of both models, in batches as a job makes them."""
    batches = [list(sequences[at : at + BATCH]) for at in range(0, len(sequences), BATCH)]
    return as_float64([pair for batch in batches for pair in engine.logprobs(batch)])

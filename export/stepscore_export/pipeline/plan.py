"""What an export will do, decided before anything is written: both checkpoints open, every choice made."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import Distance, ModelName
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.prompt.template import Template
from stepscore_export.backends.base import Backend, ExportEstimate
from stepscore_export.backends.graph_backend import BASE_BYTES
from stepscore_export.backends.registry import backend_of
from stepscore_export.checkpoint.chat_template import check_template, prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.checkpoint.pair import check_pair, cut_padding
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.options import ExportOptions, Options
from stepscore_export.reference.calibration import estimate_calibration
from stepscore_export.reference.layerwise_fp32 import BATCH_ROWS
from stepscore_export.validation.advice import same_model_warning
from stepscore_export.validation.texts import (
    CALIBRATION_TOKENS,
    MAX_CALIBRATION_TOKENS,
    NO_TEXTS,
    Texts,
    bundled_texts,
    calibration_texts,
    encode_texts,
)

LOGGER = logging.getLogger("stepscore")
FIDELITY_WORK = 12 * 10**12
"""Parameters times tokens of the bundled texts that a pair is measured on: of two 7.6B models the first half
of these texts, ten minutes on two cores; of models up to 3B all. A user's own text is read to its end."""


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Solutions as token ids, and the name of the data for the manifest."""

    name: str
    prompts: Sequence[EncodedPrompt]

    @property
    def num_tokens(self) -> int:
        """Token ids of all solutions."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export ready to run; it holds while its checkpoints are open."""

    checkpoints: dict[ModelName, Checkpoint]
    stored: Members
    """The checkpoints as the backend stores them: the same models, maybe rotated."""
    prefix_ids: NDArray[np.int64]
    """Tokens that every record begins with and whose results are stored; none where a pair has no place."""
    backend: Backend[Any]
    """With every choice made."""
    distance: Distance
    template: Template
    fidelity_data: EncodedTexts
    calibration: EncodedTexts | None
    needs: ExportEstimate


@contextmanager
def open_plan(
    policy: str | Path,
    reference: str | Path,
    options: Options | None = None,
    *,
    texts: Texts | None = None,
    calibration: Texts | None = None,
) -> Iterator[ExportPlan]:
    """Open both checkpoints, check that they are a pair, make every choice and estimate what it takes.

    Arguments and errors are those of `export_pair`.
    """
    backend = backend_of(options or ExportOptions())
    backend.require()
    with Checkpoint.open(policy, "policy") as of_policy, Checkpoint.open(reference, "reference") as other:
        check_pair(of_policy, other)
        cut_padding(of_policy, other)
        checkpoints: dict[ModelName, Checkpoint] = {"policy": of_policy, "reference": other}
        if backend.reader is not None:
            for checkpoint in checkpoints.values():
                checkpoint.require_plain(backend.reader)
        template, encoder = prompt_template(of_policy)
        check_template(other, template, encoder)
        fidelity_data = _fidelity_data(texts or bundled_texts(), encoder, checkpoints)
        distance = measure_distance(of_policy, other)
        if (warning := same_model_warning(distance)) is not None:
            LOGGER.warning(warning)
        asked = calibration is not None and calibration != NO_TEXTS
        backend = backend.resolve(distance, calibrated=asked)
        stored = backend.view(checkpoints)
        calibrated_on = _calibration(backend, calibration or calibration_texts(), encoder)
        yield ExportPlan(
            checkpoints=checkpoints,
            stored=stored,
            prefix_ids=_prefix_ids(backend, encoder, stored),
            backend=backend,
            distance=distance,
            template=template,
            fidelity_data=fidelity_data,
            calibration=calibrated_on,
            needs=_needs(backend, stored, calibrated_on),
        )


def _prefix_ids(backend: Backend[Any], encoder: PromptEncoder, stored: Members) -> NDArray[np.int64]:
    """Return the tokens whose results are stored: none where they and one more exceed a model's positions."""
    token_ids = encoder.prefix_ids()
    positions = min(model.config.max_position_embeddings for model in stored.values())
    kept = backend.keeps_prefix and len(token_ids) < positions
    return token_ids if kept else np.empty(0, np.int64)


def _calibration(backend: Backend[Any], texts: Texts, encoder: PromptEncoder) -> EncodedTexts | None:
    """Encode texts to calibrate on; None where a backend does without, or none of them fits the model."""
    if not backend.calibrates:
        return None
    most = CALIBRATION_TOKENS if texts.path is None else MAX_CALIBRATION_TOKENS
    prompts = encode_texts(texts, encoder, max_tokens=most)
    return EncodedTexts(texts.name, prompts) if prompts else None


def _needs(backend: Backend[Any], stored: Members, calibrated_on: EncodedTexts | None) -> ExportEstimate:
    needs = backend.estimate(stored, BATCH_ROWS)
    if calibrated_on is None:
        return needs
    config, tokens = stored["reference"].config, calibrated_on.num_tokens
    more = estimate_calibration(config, tokens, backend.storage.block_size)
    return replace(
        needs,
        memory_bytes=max(needs.memory_bytes, BASE_BYTES + more.memory_bytes),
        seconds=needs.seconds + more.seconds,
    )


def _fidelity_data(texts: Texts, encoder: PromptEncoder, checkpoints: Members) -> EncodedTexts:
    work = FIDELITY_WORK // sum(model.parameters() for model in checkpoints.values())
    return EncodedTexts(texts.name, encode_texts(texts, encoder, max_tokens=None if texts.path else work))

"""The manifest of an export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
import onnxruntime as ort

from stepscore.artifact.manifest import (
    SCHEMA_VERSION,
    Architecture,
    Distance,
    FileEntry,
    Manifest,
    Unit,
)
from stepscore.prompt.template import Template
from stepscore_export.backends.base import Storage, StoredUnit
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import DecoderConfig, architecture


def manifest_of(
    checkpoints: Members,
    *,
    template: Template,
    prefix_tokens: int,
    distance: Distance,
    storage: Storage,
    units: Iterable[StoredUnit[Any]],
    files: Mapping[str, FileEntry],
    calibration: str | None = None,
) -> Manifest:
    """Return the manifest of these units and files, without the results of self-test and fidelity.

    `calibration` names the data that the base of a coded pair was calibrated on.
    """
    difference = storage.difference
    if difference is not None:
        difference = msgspec.structs.replace(difference, calibration=calibration)
    packages = {name: version(name) for name in ("stepscore", *storage.packages)}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=checkpoints["policy"].source,
        reference=checkpoints["reference"].source,
        architecture=_shared_architecture(*(checkpoint.config for checkpoint in checkpoints.values())),
        format=storage.format,
        exporter=storage.exporter,
        precision=storage.precision,
        block_size=storage.block_size,
        target=storage.target,
        coding=storage.coding,
        difference=difference,
        distance=distance,
        beta=storage.beta,
        template=template,
        prefix_tokens=prefix_tokens,
        units=tuple(Unit(unit.folder, tuple(unit.members), unit.extents) for unit in units),
        selftest=None,
        fidelity=None,
        # The package of onnxruntime has two names: onnxruntime and onnxruntime-gpu.
        versions=packages | {"onnxruntime": ort.__version__},
        files=dict(sorted(files.items())),
    )


def _shared_architecture(policy: DecoderConfig, reference: DecoderConfig) -> Architecture:
    """Return the shape of both, and the positions that both have."""
    positions = min(policy.max_position_embeddings, reference.max_position_embeddings)
    return msgspec.structs.replace(architecture(policy), max_position_embeddings=positions)

"""The manifest of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
import onnxruntime as ort

from stepscore.artifact.manifest import (
    SCHEMA_VERSION,
    Architecture,
    Difference,
    Distance,
    FileEntry,
    Manifest,
    Unit,
)
from stepscore.enums import DifferencePrecision
from stepscore.prompt.template import Template
from stepscore_export.backends.base import Storage, StoredUnit
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import DecoderConfig, architecture
from stepscore_export.weights.lossless import lossless_facts


def manifest_of(
    checkpoints: Members,
    *,
    template: Template,
    prefix_tokens: int,
    distance: Distance,
    storage: Storage,
    units: Sequence[StoredUnit[Any]],
    files: Mapping[str, FileEntry],
    calibration: str | None = None,
) -> Manifest:
    """Return the manifest of these units and files, without the results of self-test and fidelity.

    `calibration` names the data that the base of a coded pair was calibrated on.
    """
    difference = storage.difference
    if difference is not None:
        difference = msgspec.structs.replace(difference, calibration=calibration)
        difference = _with_lossless_facts(difference, units)
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


def _with_lossless_facts(difference: Difference, units: Sequence[StoredUnit[Any]]) -> Difference:
    facts = None
    if difference.precision is DifferencePrecision.LOSSLESS:
        (unit,) = units
        facts = lossless_facts(unit.weights)
    if facts is None:
        return difference
    return msgspec.structs.replace(
        difference, unchanged=float(f"{facts.unchanged:.4g}"), bits=float(f"{facts.bits:.4g}")
    )


def _shared_architecture(policy: DecoderConfig, reference: DecoderConfig) -> Architecture:
    """Return the shape of both, and the positions that both have."""
    positions = min(policy.max_position_embeddings, reference.max_position_embeddings)
    return msgspec.structs.replace(architecture(policy), max_position_embeddings=positions)

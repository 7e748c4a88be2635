"""The manifest of an export."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

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
from stepscore.enums import Activations, Exporter, Format
from stepscore.prompt.template import Template
from stepscore_export.backends.optimum_trace import PACKAGES
from stepscore_export.checkpoint.checkpoint import Members
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions


@dataclass(frozen=True, slots=True)
class Facts:
    """What an export knows before it writes anything."""

    checkpoints: Members
    template: Template
    distance: Distance
    calibration: str | None


def manifest_of(
    facts: Facts, options: ExportOptions, units: tuple[Unit, ...], files: dict[str, FileEntry]
) -> Manifest:
    """Return the manifest of these units and files, not checked and not measured yet."""
    checkpoints = facts.checkpoints
    return Manifest(
        schema_version=SCHEMA_VERSION,
        policy=checkpoints["policy"].source,
        reference=checkpoints["reference"].source,
        architecture=shared_architecture(*(checkpoint.config for checkpoint in checkpoints.values())),
        format=Format.ONNX,
        exporter=options.exporter,
        precision=options.precision,
        block_size=options.block_size,
        target=options.target,
        coding=options.coding,
        difference=_difference(options, facts.calibration),
        distance=facts.distance,
        beta=options.beta,
        template=facts.template,
        units=units,
        selftest=None,
        fidelity=None,
        versions={  # the package of onnxruntime has two names: onnxruntime and onnxruntime-gpu
            **{name: version(name) for name in ("stepscore", "onnx-ir")},
            "onnxruntime": ort.__version__,
            **({name: version(name) for name in PACKAGES} if options.exporter is Exporter.OPTIMUM else {}),
        },
        files=dict(sorted(files.items())),
    )


def _difference(options: ExportOptions, calibration: str | None) -> Difference | None:
    if options.difference_precision is None:
        return None
    activations = options.activations or Activations.EXACT
    return Difference(options.difference_precision, activations, options.products, calibration)


def shared_architecture(policy: DecoderConfig, reference: DecoderConfig) -> Architecture:
    """Return the shape of both, and the positions that both have."""
    shared = {key: getattr(policy, key) for key in Architecture.__struct_fields__}
    positions = min(policy.max_position_embeddings, reference.max_position_embeddings)
    return Architecture(**shared | {"max_position_embeddings": positions})

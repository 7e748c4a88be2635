"""What an export will do, decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stepscore.artifact.manifest import Distance
from stepscore.engine.ort.provider_checks import needs_unsigned_weights
from stepscore.engine.pytorch.engine import require_packages
from stepscore.enums import Activations, Coding, Exporter, Products
from stepscore.errors import ExportError
from stepscore_export.backends.base import ExportEstimate
from stepscore_export.backends.bitsandbytes import estimate_bitsandbytes
from stepscore_export.backends.optimum_trace import require_optimum
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members, check_pair
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.options import OPTIMUM_HINT, BitsandbytesOptions, ExportOptions
from stepscore_export.pipeline.estimate import estimate
from stepscore_export.quantization.coding import choose_coding, choose_difference_precision
from stepscore_export.reference.calibration import MAX_TOKENS
from stepscore_export.validation.texts import Texts, encode_texts


def resolve_options(options: ExportOptions, distance: Distance) -> ExportOptions:
    """Return the options with every choice made that was left to us."""
    if choose_coding(options, distance) is Coding.DIFFERENCE:
        products = Products.MERGED if options.merged else Products.SEPARATE
        return replace(
            options,
            coding=Coding.DIFFERENCE,
            difference_precision=choose_difference_precision(options, distance),
            activations=Activations.INT8 if options.integer_products else Activations.EXACT,
            products=None if options.integer_products else products,
        )
    return replace(
        options,
        coding=Coding.INDEPENDENT,
        difference_precision=None,
        activations=Activations.EXACT,
        products=None,
    )


def check_settled(options: ExportOptions, calibration: Texts | None) -> None:
    """Refuse, before anything is written, what could not be run at the end or has no base to calibrate."""
    if options.activations is Activations.INT8:
        needs_unsigned_weights()
    if options.exporter is Exporter.OPTIMUM:
        require_optimum()
        if calibration is not None:
            raise ExportError("--exporter optimum has no --calibration", hint=OPTIMUM_HINT)
    if calibration is not None and options.coding is Coding.INDEPENDENT:
        raise ExportError(
            "only the base of a coded pair is calibrated, and this pair is not coded",
            hint="drop --calibration, or take --coding difference with --precision int8 or int4",
        )


Options = ExportOptions | BitsandbytesOptions


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export will do, and what that needs."""

    options: Options
    distance: Distance
    needs: ExportEstimate


def plan_export(
    policy: str, reference: str, options: Options, texts: tuple[Texts, Texts | None]
) -> ExportPlan:
    """Open both checkpoints, make every choice, and estimate what the export takes."""
    with Checkpoint.open(policy) as policy_model, Checkpoint.open(reference) as reference_model:
        check_pair(policy_model, reference_model)
        _, encoder = prompt_template(policy_model)
        encode_texts(texts[0], encoder)
        if texts[1] is not None:
            encode_texts(texts[1], encoder, MAX_TOKENS)
        distance = measure_distance(policy_model, reference_model)
        checkpoints: Members = {"policy": policy_model, "reference": reference_model}
        if isinstance(options, BitsandbytesOptions):
            require_packages()
            return ExportPlan(options, distance, estimate_bitsandbytes(checkpoints, options))
        settled = resolve_options(options, distance)
        check_settled(settled, texts[1])
        return ExportPlan(settled, distance, estimate(checkpoints, settled))

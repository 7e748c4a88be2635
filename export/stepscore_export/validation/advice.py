"""Says what is unusual about a pair, and which form of it would be closer to its checkpoints. Pure."""

from __future__ import annotations

from stepscore.artifact.manifest import Distance, Fidelity, Manifest
from stepscore.enums import Coding, Exporter, Format, Precision, Target
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.coding import choose_coding

LARGE_ERROR = 0.05
"""Log-ratio error from which an export warns.

On a real Qwen2.5 pair PyTorch bf16 has about as much, and from there on decisions change: 97 % of the first
errors are those of fp32 (docs/benchmarks/fidelity.md). There the default form has 1.5 to 2.4 %.
"""


def better_form(manifest: Manifest) -> str | None:
    """Return the options of the next form that is closer to the checkpoints; None where there is none.

    Each step removes what moves the rewards most: a 4-bit base, int8 activations, coding each model alone,
    and at last integers.
    """
    integers = manifest.precision in {Precision.INT8, Precision.INT4}
    if manifest.format is Format.BITSANDBYTES:
        return "--format onnx" if manifest.precision is Precision.INT8 else "--precision int8"
    if manifest.exporter is Exporter.OPTIMUM or not integers:
        return _closer_floats(manifest)
    if manifest.coding is Coding.INDEPENDENT:
        chosen = choose_coding(ExportOptions(manifest.precision), manifest.distance)
        return "--coding difference" if chosen is Coding.DIFFERENCE else _floats(manifest)
    if manifest.precision is Precision.INT4:
        return "--precision int8"
    return "--activations exact" if manifest.has_int8_activations else _floats(manifest)


def error_warning(fidelity: Fidelity, manifest: Manifest) -> str | None:
    """Return a line on a log-ratio error of LARGE_ERROR or more, and what would reduce it; else None."""
    error = fidelity.ratio_error
    if error is not None and error < LARGE_ERROR:
        return None
    size = "unknown" if error is None else f"{100 * error:.3g} %"
    better = better_form(manifest)
    advice = "no other form is closer" if better is None else f"export with {better} for a smaller one"
    return f"the pair's log-ratio error is {size}, which changes decisions; {advice}"


def same_model_warning(distance: Distance) -> str | None:
    """Return a line where policy and reference have the same matrices; else None."""
    if distance.overall > 0:
        return None
    return (
        "policy and reference have the same weights, so that every reward is 0; "
        "check that --policy and --reference name different checkpoints"
    )


def _floats(manifest: Manifest) -> str:
    return "--precision fp32" if manifest.target is Target.CPU else "--precision fp16"


def _closer_floats(manifest: Manifest) -> str | None:
    if manifest.precision is Precision.FP32:
        return None
    if manifest.target is Target.CPU:
        return "--precision fp32"
    return "--precision fp16" if manifest.precision is Precision.BF16 else None

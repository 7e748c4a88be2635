"""Pairs that optimum traces, and whether it can be used here."""

from __future__ import annotations

from functools import cache

from stepscore.enums import Exporter, Precision
from stepscore.errors import ProviderUnavailable
from stepscore_export.backends.optimum_trace import require_optimum
from stepscore_export.options import ExportOptions

TRACED = ExportOptions(Precision.FP32, exporter=Exporter.OPTIMUM)


@cache
def why_not() -> str | None:
    """Say what keeps this environment from tracing, if anything does; imports PyTorch."""
    try:
        require_optimum()
    except ProviderUnavailable as error:
        return error.message
    return None

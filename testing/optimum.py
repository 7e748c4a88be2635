"""Pairs that optimum traces, for tests: skipped, with the reason, where it cannot be used."""

from __future__ import annotations

import pytest

from stepscore.enums import Exporter, Precision
from stepscore.errors import ProviderUnavailable
from stepscore_export.backends.optimum_trace import require_optimum
from stepscore_export.options import ExportOptions

TRACED = ExportOptions(Precision.FP32, exporter=Exporter.OPTIMUM)


def why_not() -> str | None:
    """What keeps this environment from tracing."""
    try:
        require_optimum()
    except ProviderUnavailable as error:
        return error.message
    return None


needs_optimum = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

"""Export two checkpoints as one sealed pair for `stepscore`, in bounded memory.

    from stepscore_export import ExportOptions, Precision, export_pair

    export_pair("policy", "reference", "pair", ExportOptions(Precision.INT8))

Public names are imported on first use, so that `stepscore export --help` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepscore.extras import naming_extras

if TYPE_CHECKING:
    from stepscore.enums import Activations as Activations
    from stepscore.enums import Coding as Coding
    from stepscore.enums import DifferencePrecision as DifferencePrecision
    from stepscore.enums import Exporter as Exporter
    from stepscore.enums import Precision as Precision
    from stepscore.enums import Products as Products
    from stepscore.enums import Target as Target
    from stepscore_export.options import BitsandbytesOptions as BitsandbytesOptions
    from stepscore_export.options import ExportOptions as ExportOptions
    from stepscore_export.pipeline.export import export_pair as export_pair
    from stepscore_export.validation.texts import NO_TEXTS as NO_TEXTS
    from stepscore_export.validation.texts import Texts as Texts
    from stepscore_export.validation.texts import read_texts as read_texts

_HOMES = {
    "NO_TEXTS": "stepscore_export.validation.texts",
    "Activations": "stepscore.enums",
    "BitsandbytesOptions": "stepscore_export.options",
    "Coding": "stepscore.enums",
    "DifferencePrecision": "stepscore.enums",
    "ExportOptions": "stepscore_export.options",
    "Exporter": "stepscore.enums",
    "Precision": "stepscore.enums",
    "Products": "stepscore.enums",
    "Target": "stepscore.enums",
    "Texts": "stepscore_export.validation.texts",
    "export_pair": "stepscore_export.pipeline.export",
    "read_texts": "stepscore_export.validation.texts",
}

__all__ = [*_HOMES]  # noqa: PLE0604 (names of strings, all of them)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with naming_extras():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Which backend the options ask for: the one place that knows them all."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from stepscore.enums import Exporter
from stepscore_export.backends.base import Backend
from stepscore_export.backends.bitsandbytes import BitsandbytesBackend
from stepscore_export.backends.cuda import CudaBackend
from stepscore_export.backends.graph_backend import GraphBackend
from stepscore_export.backends.onnx import OnnxBackend
from stepscore_export.backends.optimum import OptimumBackend
from stepscore_export.options import BitsandbytesOptions, Options

_EXPORTERS: MappingProxyType[Exporter, type[GraphBackend[Any]]] = MappingProxyType(
    {Exporter.STEPSCORE: OnnxBackend, Exporter.OPTIMUM: OptimumBackend}
)


def backend_of(options: Options) -> Backend[Any]:
    """Return the backend of these options, its choices not yet resolved."""
    if isinstance(options, BitsandbytesOptions):
        return BitsandbytesBackend(options)
    if options.signed_codes:
        return CudaBackend(options)
    return _EXPORTERS[options.exporter](options)

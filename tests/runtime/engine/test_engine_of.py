"""Which engine runs a pair: one registered for its format, else the built-in one, imported only then."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import msgspec
import pytest
from testing.manifests import manifest

from stepscore import engine as engines
from stepscore.artifact.manifest import Manifest
from stepscore.engine import ENGINE_GROUP, engine_of
from stepscore.engine.base import Engine
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.pytorch.engine import TorchEngine
from stepscore.enums import Exporter, Format, Target

BUILT_IN = {Format.ONNX: OrtEngine, Format.BITSANDBYTES: TorchEngine}


def of(of_format: Format, **other: Any) -> Manifest:
    return msgspec.structs.replace(manifest(), format=of_format, **other)


class OtherEngine(Engine):
    """What another package may register."""


def register(monkeypatch: pytest.MonkeyPatch, *registered: EntryPoint) -> None:
    def found(**which: Any) -> EntryPoints:
        return EntryPoints(registered).select(**which)

    monkeypatch.setattr(engines, "entry_points", found)


@pytest.mark.parametrize("of_format", Format)
def test_every_format_has_a_built_in_engine(monkeypatch: pytest.MonkeyPatch, of_format: Format) -> None:
    register(monkeypatch)
    assert engine_of(of(of_format)) is BUILT_IN[of_format]


@pytest.mark.parametrize(
    ("exporter", "engine"), [(Exporter.STEPSCORE, CudaEngine), (Exporter.OPTIMUM, OrtEngine)]
)
def test_only_graphs_without_weights_have_the_engine_for_cuda(
    monkeypatch: pytest.MonkeyPatch, exporter: Exporter, engine: type[Engine]
) -> None:
    """Traced graphs for CUDA are those for the CPU."""
    register(monkeypatch)
    assert engine_of(of(Format.ONNX, target=Target.CUDA, exporter=exporter)) is engine


@pytest.mark.parametrize("of_format", Format)
def test_a_registered_engine_runs_the_format_it_is_named_for(
    monkeypatch: pytest.MonkeyPatch, of_format: Format
) -> None:
    register(monkeypatch, EntryPoint(of_format.value, f"{__name__}:OtherEngine", ENGINE_GROUP))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, sys))
    monkeypatch.setattr(sys.modules[__name__], "OtherEngine", OtherEngine, raising=False)
    assert engine_of(of(of_format)) is OtherEngine
    (other,) = set(Format) - {of_format}
    assert engine_of(of(other)) is BUILT_IN[other]


@pytest.mark.parametrize(
    ("pair", "not_imported"),
    [
        (of(Format.ONNX), ["torch", "transformers"]),
        (of(Format.ONNX, target=Target.CUDA), ["torch", "transformers"]),
        (of(Format.BITSANDBYTES), ["onnxruntime", "torch", "transformers"]),
    ],
    ids=["onnx", "onnx-cuda", "bitsandbytes"],
)
def test_choosing_an_engine_imports_no_other_engines_library(pair: Manifest, not_imported: list[str]) -> None:
    code = f"""
import sys, msgspec
from stepscore.artifact.manifest import Manifest
from stepscore.engine import engine_of
engine_of(msgspec.json.decode({pair.encode()!r}, type=Manifest))
print([name for name in {not_imported!r} if name in sys.modules], "stepscore_export" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[] False\n"

"""The public names of stepscore_export: all of them exist, and none is imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stepscore_export
from stepscore_export.validation.texts import NO_TEXTS


@pytest.mark.parametrize("name", stepscore_export.__all__)
def test_public_name_is_what_its_home_defines(name: str) -> None:
    found = getattr(stepscore_export, name)
    assert found is NO_TEXTS if name == "NO_TEXTS" else found.__name__ == name


def test_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="export_bitsandbytes"):
        _ = stepscore_export.export_bitsandbytes


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, stepscore_export; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert loaded & {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "tokenizers"} == set()

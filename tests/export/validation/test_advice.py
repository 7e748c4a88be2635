"""Large errors and equal models are warned of, with a remedy that works."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from testing.pairs import Checkpoints, PairOf

from stepscore.artifact.manifest import Difference, Distance, Manifest
from stepscore.artifact.pair import Pair
from stepscore.enums import Activations, Coding, DifferencePrecision, Exporter, Format, Precision, Target
from stepscore.errors import SelftestFailed
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.advice import LARGE_ERROR, better_form, error_warning, same_model_warning
from stepscore_export.validation.texts import NO_TEXTS

INTEGER = Difference(DifferencePrecision.INT8, Activations.INT8, None)
EXACT = Difference(DifferencePrecision.INT4, Activations.EXACT, None)


@pytest.fixture(scope="module")
def manifest(pair_of: PairOf) -> Manifest:
    return Pair.open(pair_of(Precision.FP32)).manifest


@pytest.mark.parametrize(
    ("fields", "better"),
    [
        ({"precision": Precision.INT4, "coding": Coding.DIFFERENCE, "difference": EXACT}, "--precision int8"),
        (
            {"precision": Precision.INT8, "coding": Coding.DIFFERENCE, "difference": INTEGER},
            "--activations exact",
        ),
        ({"precision": Precision.INT8, "coding": Coding.DIFFERENCE, "difference": EXACT}, "--precision fp32"),
        ({"precision": Precision.INT8, "coding": Coding.INDEPENDENT}, "--coding difference"),
        (
            {"precision": Precision.INT8, "coding": Coding.INDEPENDENT, "distance": Distance(1.5, {})},
            "--precision fp32",
        ),
        ({"precision": Precision.BF16}, "--precision fp32"),
        ({"precision": Precision.BF16, "target": Target.CUDA}, "--precision fp16"),
        ({"precision": Precision.FP16, "target": Target.CUDA}, None),
        ({"precision": Precision.FP32}, None),
        ({"precision": Precision.FP32, "exporter": Exporter.OPTIMUM}, None),
        ({"precision": Precision.NF4, "format": Format.BITSANDBYTES, "target": None}, "--precision int8"),
        ({"precision": Precision.INT8, "format": Format.BITSANDBYTES, "target": None}, "--format onnx"),
    ],
)
def test_each_form_has_a_closer_one_until_none_is(
    manifest: Manifest, fields: dict[str, object], better: str | None
) -> None:
    assert better_form(msgspec.structs.replace(manifest, **fields)) == better


@pytest.mark.slow
def test_an_error_is_warned_of_from_the_bound_on(pair_of: PairOf) -> None:
    manifest = Pair.open(pair_of.measured(Precision.INT8, coding=Coding.DIFFERENCE)).manifest
    fidelity = manifest.fidelity
    assert fidelity is not None

    def warning(error: float | None) -> str | None:
        return error_warning(msgspec.structs.replace(fidelity, ratio_error=error), manifest)

    assert warning(0.99 * LARGE_ERROR) is None
    assert "log-ratio error is 5 %" in (warning(LARGE_ERROR) or "")
    assert "--activations exact" in (warning(LARGE_ERROR) or "")
    assert "unknown" in (warning(None) or "")


def test_equal_models_are_warned_of(
    tiny_checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_checkpoints.reference
    export_pair(model, model, tmp_path / "pair", ExportOptions(Precision.FP32), texts=NO_TEXTS)
    assert [record.getMessage() for record in caplog.records] == [same_model_warning(Distance(0, {}))]
    assert same_model_warning(Distance(1e-9, {})) is None


def outliers_before_down(folder: Path, models: Checkpoints, factor: float) -> Checkpoints:
    """Scale three channels between `up` and `down`: the same function, which int8 rows cannot hold."""
    for source in (models.policy, models.reference):
        target = folder / source.name
        target.mkdir()
        for path in source.iterdir():
            shutil.copy(path, target / path.name)
        tensors = load_file(source / "model.safetensors")
        for name in tensors:
            if "up_proj" in name:
                tensors[name][7:10] *= np.float32(factor)
            elif "down_proj" in name:
                tensors[name][:, 7:10] /= np.float32(factor)
        save_file(tensors, target / "model.safetensors")
    return Checkpoints.at(folder)


EXAMPLE = Path(__file__).parents[3] / "examples" / "pair"


@pytest.mark.slow
def test_the_remedy_for_outliers_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refused pair's hint names a form that passes; that one is warned of, with a form that is exact."""
    models = outliers_before_down(tmp_path, Checkpoints.at(EXAMPLE), 1000)
    with pytest.raises(SelftestFailed) as refused:
        export_pair(models.policy, models.reference, tmp_path / "pair", calibration=NO_TEXTS)
    assert "--activations exact" in str(refused.value.hint)
    exact = ExportOptions(activations=Activations.EXACT)
    pair = export_pair(models.policy, models.reference, tmp_path / "pair", exact, calibration=NO_TEXTS)
    assert pair.manifest.selftest is not None
    warned = caplog.records[-1].getMessage()
    assert "--precision fp32" in warned
    floats = ExportOptions(Precision.FP32)
    assert fidelity_error(export_pair(models.policy, models.reference, tmp_path / "floats", floats)) < 1e-3


def fidelity_error(pair: Pair) -> float:
    fidelity = pair.manifest.fidelity
    assert fidelity is not None
    assert fidelity.ratio_error is not None
    return fidelity.ratio_error

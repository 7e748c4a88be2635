"""Pairs for CUDA: a table of the weights beside the graphs, and a difference that loses no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from testing.checkpoints import TINY, DType, edit_tensors, weights, write_checkpoint
from testing.forms import MERGED
from testing.pair_files import open_and_verify
from testing.pairs import PairOf, export_unmeasured

from stepscore.artifact.manifest import Distance
from stepscore.artifact.tensor_table import TENSORS, LosslessForm, TensorEntry, TensorTable
from stepscore.enums import Coding, DifferencePrecision, Precision, Target
from stepscore.errors import CheckpointCorrupt, ExportError
from stepscore_export.backends.cuda import CudaBackend
from stepscore_export.options import ExportOptions

LOSSLESS = ExportOptions(Precision.BF16, Target.CUDA, coding=Coding.DIFFERENCE)
TYPES: dict[Precision, DType] = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def checkpoints(folder: Path, policy: DType, reference: DType, perturb: float = 0.01) -> tuple[Path, Path]:
    return (
        write_checkpoint(folder / "policy", TINY, seed=1, dtype=policy, perturb=perturb),
        write_checkpoint(folder / "reference", TINY, seed=1, dtype=reference),
    )


@pytest.mark.parametrize("precision", TYPES)
def test_a_lossless_pair_is_one_unit_of_coded_matrices(tmp_path: Path, precision: Precision) -> None:
    stored = TYPES[precision]
    options = replace(LOSSLESS, precision=precision)
    pair = export_unmeasured(*checkpoints(tmp_path, stored, stored), tmp_path / "pair", options)
    manifest = open_and_verify(pair.path).manifest
    assert (manifest.precision, manifest.coding) == (precision, Coding.DIFFERENCE)
    assert manifest.difference is not None
    assert (manifest.difference.precision, manifest.difference.products) == (
        DifferencePrecision.LOSSLESS,
        None,
    )
    assert manifest.difference.calibration is None
    (unit,) = manifest.units
    assert unit.models == ("reference", "policy")
    stages = TensorTable.read(pair.path, manifest, unit).stages()
    forms = [type(matrix.form) for stage in stages for matrix in stage.matrices.values()]
    assert len(forms) == 5 * TINY.num_hidden_layers + 1
    if precision is Precision.BF16:  # in fp16 a change of 1 % is 8 times as many units in the last place
        assert LosslessForm in forms


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("model", ["policy", "reference"])
def test_a_lossless_pair_wants_checkpoints_of_its_type(
    tmp_path: Path, precision: Precision, model: str
) -> None:
    stored: dict[str, DType] = dict.fromkeys(("policy", "reference"), TYPES[precision])
    stored[model] = "float32"
    policy, reference = checkpoints(tmp_path, stored["policy"], stored["reference"])
    with pytest.raises(ExportError) as refused:
        export_unmeasured(policy, reference, tmp_path / "pair", replace(LOSSLESS, precision=precision))
    assert refused.value.message == (
        f"a lossless difference at {precision} requires checkpoints in {TYPES[precision]}; "
        f"the {model} is in float32"
    )
    assert refused.value.hint == "use --precision int8, or drop --coding"
    assert not (tmp_path / "pair").exists()


def test_a_matrix_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    """The type of a checkpoint is that of its embedding; another tensor may be in a finer one."""
    policy, reference = checkpoints(tmp_path, "bfloat16", "bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    finer = weights(TINY, seed=1, perturb=0.01)[name]
    edit_tensors(policy / "model.safetensors", lambda tensors: tensors.update({name: finer}))
    with pytest.raises(CheckpointCorrupt, match=r"layers\.1\.up holds values that bfloat16 does not"):
        export_unmeasured(policy, reference, tmp_path / "pair", LOSSLESS)


def test_a_backend_says_how_it_stores() -> None:
    lossless, coded = (
        CudaBackend(options).resolve(Distance(0.01, {}), calibrated=False)
        for options in (LOSSLESS, replace(MERGED[Precision.INT8], target=Target.CUDA))
    )
    assert lossless.describe() == "bf16 reference + lossless difference"
    assert coded.describe().startswith("int8 reference + int4 difference")
    assert (lossless.calibrates, coded.calibrates) == (False, True)


def test_a_lossless_pair_is_not_calibrated() -> None:
    with pytest.raises(ExportError, match="a lossless pair rounds nothing to calibrate") as refused:
        CudaBackend(LOSSLESS).resolve(Distance(0.01, {}), calibrated=True)
    assert refused.value.hint == "drop --calibration"


@pytest.mark.parametrize("precision", MERGED)
def test_every_tensor_of_the_table_starts_at_a_page(pair_of: PairOf, precision: Precision) -> None:
    """Streamed stages are copied as whole ranges; a page is what is locked."""
    pair = pair_of.form(replace(MERGED[precision], target=Target.CUDA))
    table = msgspec.json.decode((pair / "both" / TENSORS).read_bytes(), type=dict[str, TensorEntry])
    assert all(entry.offset % 4096 == 0 for entry in table.values())
    matrices = {name.rsplit(".", 2)[0] for name in table if name.endswith(".codes")}
    assert len(matrices) == 5 * TINY.num_hidden_layers + 1

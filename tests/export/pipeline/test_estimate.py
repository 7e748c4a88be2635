"""What an export needs: disk to the byte, and memory that does not grow with depth."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from testing.checkpoints import ODD, TINY, tied, write_checkpoint
from testing.forms import CUDA_PRECISIONS, INTEGER, INTEGER_PRECISIONS, MERGED
from testing.pairs import export_unmeasured

from stepscore.artifact.manifest import Selftest
from stepscore.artifact.pair import Pair
from stepscore.enums import Coding, DifferencePrecision, Format, Precision, Target
from stepscore_export.checkpoint import chat_template
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline import export as pair_module
from stepscore_export.pipeline.plan import open_plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(ODD, id="odd"),
        pytest.param(tied(ODD), marks=pytest.mark.slow, id="odd-tied"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        *(ExportOptions(each) for each in Format.ONNX.precisions if each is not Precision.INT8),
        MERGED[Precision.INT8],
        INTEGER,
        ExportOptions(Precision.INT4, block_size=128),
        *(ExportOptions(precision, Target.CUDA) for precision in CUDA_PRECISIONS),
        *(ExportOptions(precision, coding=Coding.INDEPENDENT) for precision in INTEGER_PRECISIONS),
        ExportOptions(Precision.INT8, difference_precision=DifferencePrecision.INT2),
    ],
    ids=lambda options: f"{options.precision}-{options.target}-{options.block_size}-{options.coding}",
)
def test_the_weight_file_has_the_predicted_size(
    tiny_pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: DecoderConfig,
    options: ExportOptions,
) -> None:
    template = Pair.open(tiny_pair).manifest.template
    monkeypatch.setattr(chat_template, "literals", lambda _chat_template: template)
    monkeypatch.setattr(pair_module, "run_selftest", lambda *_: Selftest("cpu", 1, 0.0, 0.0))
    folder = write_checkpoint(tmp_path / "model", shape)
    pair = export_unmeasured(folder, folder, tmp_path / "pair", options)
    with open_plan(folder, folder, options) as plan:
        needs = plan.needs
    sizes = {folder: (pair.path / folder / "weights.bin").stat().st_size for folder in needs.weight_bytes}
    assert sizes == needs.weight_bytes


MEASURE = """
import sys
from pathlib import Path
from stepscore.enums import Precision
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS, Texts, bundled_texts

folder, precision = Path(sys.argv[1]), Precision(sys.argv[2])
models, output = (folder / "policy", folder / "reference"), folder / precision
few = Texts(None, bundled_texts().records[:3])
export_pair(*models, output, ExportOptions(precision), texts=few, calibration=NO_TEXTS)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_kilobytes(folder: Path, precision: Precision) -> int:
    """The whole process; glibc gives every large block back, as it does with those of a real model."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(precision)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
    )
    return int(result.stdout)


@pytest.fixture(scope="module")
def deep_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """2 and 6 layers of 4 million parameters; the policy is its own reference."""
    folders = []
    for layers in (2, 6):
        folder = tmp_path_factory.mktemp(f"{layers}-layers")
        shape = replace(TINY, hidden_size=512, intermediate_size=2048, num_hidden_layers=layers, head_dim=64)
        write_checkpoint(folder / "policy", shape, seed=1, dtype="bfloat16")
        (folder / "reference").symlink_to("policy")
        folders.append(folder)
    return folders


def stored_kilobytes(pair: Path) -> int:
    return sum(path.stat().st_size for path in pair.rglob("weights.bin")) // 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_peak_memory_does_not_hold_every_layer(deep_models: list[Path], precision: Precision) -> None:
    """Four layers more are 33 MB of int8 pair; the graphs, checks and runs of a layer need about 2 MB."""
    shallow, deep = (peak_kilobytes(folder, precision) for folder in deep_models)
    shallow_weights, deep_weights = (stored_kilobytes(folder / precision) for folder in deep_models)
    assert deep - shallow < 0.4 * (deep_weights - shallow_weights)

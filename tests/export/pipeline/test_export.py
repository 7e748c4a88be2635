"""The main job: two checkpoints in, one pair out. Same input, same bytes; nothing wrong is ever sealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from testing.checkpoints import TINY, tied, write_checkpoint
from testing.forms import INTEGER, every_export
from testing.pairs import Checkpoints, PairOf, export_unmeasured

from stepscore.artifact.pair import Pair
from stepscore.engine.ort import provider_checks
from stepscore.enums import Precision, Target
from stepscore.errors import ProviderUnavailable
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.selftest import LIMITS


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tensors_and_graphs(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != "manifest.json"}


# Same input, same bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(Precision.INT4),
        INTEGER,
    ],
    ids=["int4", "int8-activations"],
)
def test_the_same_command_twice_gives_the_same_folder(
    tiny_checkpoints: Checkpoints, tmp_path: Path, options: ExportOptions
) -> None:
    once, again = (
        export_pair(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / name, options).path
        for name in ("once", "again")
    )
    assert files(once) == files(again)


def test_shards_do_not_change_a_byte(tiny_pair: Path, tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", seed=1, perturb=0.01, shards=3)
    reference = write_checkpoint(tmp_path / "reference", seed=1, shards=2)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert files(pair.path) == files(tiny_pair)


def test_the_layout_of_transformers_5_does_not_change_a_byte(tiny_pair: Path, tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", seed=1, perturb=0.01, layout=5)
    reference = write_checkpoint(tmp_path / "reference", seed=1, layout=5)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert files(pair.path) == files(tiny_pair)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", Precision.BF16), ("float16", Precision.FP16)])
def test_export_at_the_source_precision_is_exact(tmp_path: Path, dtype: str, precision: Precision) -> None:
    """A 16-bit source at its own precision and at fp32: the same numbers, bit by bit."""
    folders = [
        write_checkpoint(tmp_path / name, seed=1, perturb=perturb, dtype=dtype)  # type: ignore[arg-type]
        for name, perturb in (("policy", 0.01), ("reference", 0.0))
    ]
    errors = [
        export_unmeasured(*folders, tmp_path / which, ExportOptions(which)).manifest.selftest
        for which in (precision, Precision.FP32)
    ]
    assert errors[0] == errors[1]


def test_sources_of_different_dtypes_make_an_exact_pair(tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", tied(), seed=1, perturb=0.01, dtype="bfloat16")
    reference = write_checkpoint(tmp_path / "reference", seed=1, dtype="float16", shards=2)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert pair.manifest.selftest is not None
    assert pair.manifest.selftest.hidden_error < 1e-5


# The manifest


@every_export
def test_every_precision_and_target_is_run_before_it_is_sealed(
    pair_of: PairOf, precision: Precision, target: Target
) -> None:
    manifest = Pair.open(pair_of(precision, target)).manifest
    assert (manifest.precision, manifest.target) == (precision, target)
    assert manifest.selftest is not None
    assert manifest.selftest.num_tokens > 100
    assert 0 < manifest.selftest.hidden_error < LIMITS[precision]
    assert 0 < manifest.selftest.logprob_error < 1


def test_less_precision_means_a_larger_error(pair_of: PairOf) -> None:
    order = [Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4]
    selftests = [Pair.open(pair_of(precision)).manifest.selftest for precision in order]
    errors = [selftest.hidden_error for selftest in selftests if selftest]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5


def test_the_manifest_says_what_was_exported(tiny_pair: Path) -> None:
    manifest = Pair.open(tiny_pair).manifest
    assert (manifest.policy.name, manifest.reference.name) == ("policy", "reference")
    assert manifest.beta == 0.001
    assert manifest.architecture.vocab_size == TINY.vocab_size
    assert set(manifest.versions) == {"stepscore", "onnx-ir", "onnxruntime"}


def test_int8_activations_are_rejected_on_saturating_cpus(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provider_checks, "largest_products", lambda _depth, **_: np.full((8, 32), 32_767, np.float32)
    )
    with pytest.raises(ProviderUnavailable, match="saturates") as refused:
        export_pair(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair")
    assert "--activations exact" in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []

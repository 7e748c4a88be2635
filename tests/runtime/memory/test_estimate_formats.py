"""What scoring a pair of bitsandbytes' weights takes: weights are in memory whole, a layer never is alone."""

from __future__ import annotations

import msgspec
import pytest
from testing.manifests import BILLIONS, manifest, total

from stepscore.artifact.manifest import FileEntry, Manifest, Unit
from stepscore.enums import Format, Precision, Residency
from stepscore.errors import DoesNotFit, PairIncompatible
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import LEAST_BATCH_TOKENS, residencies

MODEL_BYTES = 5_000_000_000


@pytest.fixture
def pair() -> Manifest:
    """Two models of 7.6 billion weights at four bits, each in two files."""
    names = ("policy", "reference")
    files = {
        f"{name}/model-{part}.safetensors": FileEntry(MODEL_BYTES // 2, "0" * 64)
        for name in names
        for part in (1, 2)
    }
    plain = manifest(BILLIONS, precision=Precision.NF4)
    return msgspec.structs.replace(
        plain,
        format=Format.BITSANDBYTES,
        target=None,
        units=(Unit("policy", ("policy",), {}), Unit("reference", ("reference",), {})),
        files=plain.files | files,
    )


def test_resident_holds_both_models_and_alternate_one(pair: Manifest) -> None:
    weights = [
        estimate(pair, fit_settings(pair, residency=residency)).weights
        for residency in (Residency.RESIDENT, Residency.ALTERNATE)
    ]
    assert weights == [2 * MODEL_BYTES, MODEL_BYTES]


def test_smaller_batches_take_less(pair: Manifest) -> None:
    assert total(pair, Residency.RESIDENT, 128) < total(pair, Residency.RESIDENT, 2048)


def test_auto_ends_with_one_model_at_a_time(pair: Manifest) -> None:
    assert residencies(pair) == [Residency.RESIDENT, Residency.ALTERNATE]
    needed = total(pair, Residency.ALTERNATE, LEAST_BATCH_TOKENS)
    assert fit_settings(pair, memory_limit=needed).residency is Residency.ALTERNATE
    with pytest.raises(DoesNotFit, match="alternate scoring"):
        fit_settings(pair, memory_limit=needed - 1)


def test_stream_residency_is_rejected_by_name(pair: Manifest) -> None:
    with pytest.raises(PairIncompatible, match="bitsandbytes pairs do not support --residency stream"):
        fit_settings(pair, residency=Residency.STREAM)

"""Hollow pairs: what is random in them is valid, and the engine runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.support.forms import CODED, LOSSLESS
from benchmarks.support.gpu_plan import GPU_FORMS
from benchmarks.support.hollow import write_hollow_pair
from benchmarks.support.hollow_weights import FAR, UNCHANGED, random_rows
from benchmarks.support.shapes import QUICK

from stepscore.artifact.graph_contract import layer_file
from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.engine.cuda.lossless import decode
from stepscore.enums import Provider, Residency
from stepscore_export.quantization.lossless import joined


def test_a_random_difference_is_valid_and_has_its_shares() -> None:
    reference = np.random.default_rng(0).integers(0, 1 << 15, (3000, 1001), np.uint16)
    difference, policy = joined(random_rows(*reference.shape)), np.empty_like(reference)
    decode(reference, difference, policy)
    assert np.mean(policy == reference) == pytest.approx(UNCHANGED, abs=0.01)
    assert len(difference.escapes) / policy.size == pytest.approx(FAR, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("form", [CODED, LOSSLESS])
def test_a_hollow_pair_runs_and_gives_the_same_whatever_stays_on_the_device(
    tmp_path: Path, form: str
) -> None:
    pair = Pair.open(write_hollow_pair(tmp_path, QUICK, GPU_FORMS[form]))
    found = []
    for residency in (Residency.RESIDENT, Residency.STREAM):
        engine = CudaEngine(pair, EngineOptions(Provider.CPU, residency))
        found.append(engine.logprobs([np.arange(9)])[0])
        engine.close()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_layers_of_a_hollow_pair_are_the_same_bytes(tmp_path: Path) -> None:
    pair = Pair.open(write_hollow_pair(tmp_path, QUICK, GPU_FORMS[LOSSLESS]))
    (unit,) = pair.manifest.units
    assert unit.extents[layer_file(0)] == unit.extents[layer_file(1)]

"""The prefix cache in the estimate: its size is its limit, and counts against the limit of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.manifests import CODED, cuda_manifest, manifest

from stepscore.artifact.manifest import Manifest
from stepscore.artifact.pair import Pair
from stepscore.engine.row_values import RowValues
from stepscore.enums import Residency
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.kept import bytes_per_kept_token, num_kept_tokens
from stepscore.memory.peak import MemoryEstimate

GB = 10**9


def test_bytes_of_a_token_are_those_of_its_values(tiny_pair: Path) -> None:
    manifest = Pair.open(tiny_pair).manifest
    rows = RowValues(("policy", "reference"), None, manifest.architecture, num_slots=10).of_model.values()
    values = sum(each.keys_values.nbytes + each.hidden.nbytes + each.logprobs.nbytes for each in rows)
    assert values <= 10 * bytes_per_kept_token(manifest, element_bytes=4) < values + 10 * 64


def resident(pair: Manifest, prefix_cache: int) -> MemoryEstimate:
    options = {"max_batch_tokens": 512, "residency": Residency.RESIDENT}
    return estimate(pair, fit_settings(pair, prefix_cache=prefix_cache, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", CODED)
def test_estimate_has_the_size_of_the_cache_and_more_for_a_batch(form: str) -> None:
    plain, kept = (resident(manifest(difference=CODED[form]), size) for size in (0, GB))
    assert kept.kept == GB
    assert kept.batch > plain.batch
    assert kept.total - plain.total == GB + kept.batch - plain.batch


def test_cache_of_a_gpu_is_no_part_of_its_memory() -> None:
    pair = cuda_manifest("fp16")
    assert resident(pair, GB).total == resident(pair, 0).total


def test_a_limit_holds_for_weights_and_cache_together() -> None:
    pair = manifest(difference=CODED["integer"])
    needed = estimate(pair, fit_settings(pair, max_batch_tokens=512, residency=Residency.RESIDENT)).total
    fit_settings(pair, max_batch_tokens=512, memory_limit=needed + 2 * GB, prefix_cache=GB)
    with pytest.raises(DoesNotFit, match="resident scoring in batches") as raised:
        fit_settings(pair, max_batch_tokens=512, memory_limit=needed + GB // 2, prefix_cache=GB)
    assert "--prefix-cache" in str(raised.value.hint)


def test_a_cache_keeps_weights_resident_however_little_memory_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stepscore.memory.fit.available_bytes", lambda: GB)
    pair = manifest(difference=CODED["integer"])
    assert fit_settings(pair).residency is Residency.STREAM
    assert fit_settings(pair, prefix_cache=GB).residency is Residency.RESIDENT


def test_tokens_times_their_bytes_are_within_the_size() -> None:
    pair = manifest()
    of_token = bytes_per_kept_token(pair, element_bytes=2)
    for size in (of_token, GB, GB + 1):
        tokens = num_kept_tokens(pair, size, element_bytes=2)
        assert tokens * of_token <= size < (tokens + 1) * of_token

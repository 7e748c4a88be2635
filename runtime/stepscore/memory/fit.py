"""The fastest settings that fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterator

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Residency, Target
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import check_residency, estimate, residencies
from stepscore.memory.settings import (
    LEAST_BATCH_TOKENS,
    WINDOW_BATCHES,
    WINDOW_TOKENS,
    Settings,
    usual_batch_tokens,
    usual_head_rows,
)
from stepscore.system import available_bytes


def fit_settings(
    manifest: Manifest,
    *,
    residency: Residency = Residency.AUTO,
    memory_limit: int | None = None,
    max_batch_tokens: int | None = None,
    window_tokens: int | None = None,
) -> Settings:
    """Choose what is not given: the fastest that stays within the limit, or within the memory that is free.

    Everything resident is faster than one model at a time, that is faster than one layer at a time, and
    large batches are faster than small ones. Raises DoesNotFit where a given limit is too low for all; what
    is free is not a limit, only a reason to choose.
    """
    check_residency(manifest, residency)
    limit = memory_limit
    if limit is None and manifest.target is not Target.CUDA:
        limit = available_bytes()
    choices = list(_choices(manifest, residency, max_batch_tokens, window_tokens))
    needs = [estimate(manifest, settings).total for settings in choices]
    for settings, needed in zip(choices, needs, strict=True):
        if limit is None or needed <= limit:
            return settings
    needed, least = min(zip(needs, choices, strict=True), key=lambda each: each[0])
    if memory_limit is None:
        return least
    raise DoesNotFit(
        f"{least.residency} scoring in batches of {least.max_batch_tokens} tokens needs about "
        f"{needed / 1e9:.2f} GB; the limit is {memory_limit / 1e9:.2f} GB",
        hint="raise --memory-limit, let --residency be auto, or export the pair at fewer bits",
    )


def _choices(
    manifest: Manifest, residency: Residency, max_batch_tokens: int | None, window_tokens: int | None
) -> Iterator[Settings]:
    """Give what is possible, the fastest first."""
    on_cuda = manifest.target is Target.CUDA
    for each in residencies(manifest) if residency is Residency.AUTO else [residency]:
        tokens = max_batch_tokens or usual_batch_tokens(manifest)
        while True:
            waiting = WINDOW_TOKENS if each is Residency.RESIDENT else WINDOW_BATCHES * tokens
            usual = min(WINDOW_TOKENS, waiting)
            window = max(window_tokens or usual, tokens)
            yield Settings(each, tokens, window, min(usual_head_rows(manifest), tokens), not on_cuda)
            tokens //= 2
            if max_batch_tokens is not None or tokens < LEAST_BATCH_TOKENS:
                break

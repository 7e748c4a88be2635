"""Choose the fastest settings that fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterator

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Residency, Target
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.settings import (
    LEAST_BATCH_TOKENS,
    WINDOW_BATCHES,
    WINDOW_TOKENS,
    Settings,
    check_residency,
    residencies,
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
    """Choose the settings that are not given: the fastest within the limit, or within free memory.

    Residency `resident` is faster than `alternate`, that is faster than `stream`, and large batches are
    faster than small ones. Raises DoesNotFit where no choice fits a given limit; free memory guides the
    choice but is not a limit.
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
        hint="raise --memory-limit, use --residency auto, or export the pair at fewer bits",
    )


def _choices(
    manifest: Manifest, residency: Residency, max_batch_tokens: int | None, window_tokens: int | None
) -> Iterator[Settings]:
    """Yield the possible settings, the fastest first."""
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

"""Choose the fastest settings that fit a memory limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.manifest import Manifest
from stepscore.enums import Provider, Residency, Target
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.gpu import stage_sizes
from stepscore.memory.kept import check_prefix_cache
from stepscore.memory.settings import (
    LEAST_BATCH_TOKENS,
    LEAST_GPU_TOKENS,
    WINDOW_BATCHES,
    WINDOW_TOKENS,
    Settings,
    check_residency,
    residencies,
    usual_batch_tokens,
    usual_head_rows,
)
from stepscore.system import available_bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for; None is chosen."""

    residency: Residency = Residency.AUTO
    max_batch_tokens: int | None = None
    window_tokens: int | None = None
    prefix_cache: int = 0


def fit_settings(
    manifest: Manifest,
    *,
    residency: Residency = Residency.AUTO,
    memory_limit: int | None = None,
    max_batch_tokens: int | None = None,
    window_tokens: int | None = None,
    provider: Provider = Provider.AUTO,
    available: int | None = None,
    prefix_cache: int = 0,
) -> Settings:
    """Choose the settings that are not given: the fastest within the limit, or within free memory.

    Residency `resident` is faster than `alternate` and `partial`, these are faster than `stream`, and large
    batches are faster than small ones. Raises DoesNotFit where no choice fits a given limit; free memory
    guides the choice but is not a limit. `available` is the free memory of a GPU, where it is known. With a
    `prefix_cache`, bytes, only `resident` is chosen; the limit holds for both together, on a GPU without it.
    """
    check_residency(manifest, residency)
    if prefix_cache:
        check_prefix_cache(manifest, residency)
        residency = Residency.RESIDENT
    on_gpu = manifest.target is Target.CUDA and provider is not Provider.CPU
    limit = memory_limit
    if limit is None:
        limit = available if on_gpu else available_bytes()
    wanted = Wanted(residency, max_batch_tokens, window_tokens, prefix_cache)
    if residency is Residency.PARTIAL and limit is None:
        raise DoesNotFit(
            "--residency partial keeps as many layers as a limit allows, and none is given",
            hint="give a --memory-limit, or use --residency auto",
        )
    choices = list(_choices(manifest, wanted, limit, on_gpu=on_gpu))
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
        hint="raise --memory-limit, "
        + ("lower or omit --prefix-cache" if prefix_cache else "use --residency auto")
        + ", or export the pair at fewer bits",
    )


def _choices(manifest: Manifest, wanted: Wanted, limit: int | None, *, on_gpu: bool) -> Iterator[Settings]:
    """Yield the possible settings, the fastest first."""
    generic = uses_generic_graphs(manifest)
    asked = residencies(manifest) if wanted.residency is Residency.AUTO else [wanted.residency]
    least, before = LEAST_BATCH_TOKENS, LEAST_GPU_TOKENS if generic else LEAST_BATCH_TOKENS
    for each in asked:
        tokens = wanted.max_batch_tokens or usual_batch_tokens(manifest)
        while True:
            waiting = WINDOW_TOKENS if generic or each is Residency.RESIDENT else WINDOW_BATCHES * tokens
            window = max(wanted.window_tokens or min(WINDOW_TOKENS, waiting), tokens)
            settings = Settings(
                each,
                tokens,
                window,
                min(usual_head_rows(manifest), tokens),
                on_gpu=on_gpu,
                prefix_cache=wanted.prefix_cache,
                materializes_scores=not on_gpu,
            )
            if each is Residency.PARTIAL:
                settings = most_resident(manifest, settings, limit)
            if settings.resident_stages or each is not Residency.PARTIAL or wanted.residency is each:
                yield settings  # of no stage that stays, `stream` is the name
            tokens //= 2
            if wanted.max_batch_tokens is not None or tokens < (least if each is asked[-1] else before):
                break


def most_resident(manifest: Manifest, settings: Settings, limit: int | None) -> Settings:
    """Return settings that keep as many stages on the device as the limit allows, all without a limit."""
    for kept in range(len(stage_sizes(manifest)), 0, -1):
        partial = replace(settings, resident_stages=kept)
        if limit is None or estimate(manifest, partial).total <= limit:
            return partial
    return replace(settings, resident_stages=0)

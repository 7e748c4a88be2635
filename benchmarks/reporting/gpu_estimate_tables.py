"""What a 7.6B pair would hold and do on well-known cards: arithmetic, no measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.table import Results, Table

_NAME = "gpu_estimates"


def gpu_memory(results: Results) -> list[Table]:
    """Return the estimated memory of each form, resident and streamed, by batch size."""
    if _NAME not in results:
        return []
    rows = []
    for row in results[_NAME]["rows"]:
        resident, stream = row["gigabytes"]["resident"], row["gigabytes"]["stream"]
        sizes = [*resident.values(), *stream.values()]
        rows.append([row["form"], *(f"{size:.1f}" for size in sizes)])
    batches = [f"{int(tokens):,}" for tokens in results[_NAME]["rows"][0]["gigabytes"]["resident"]]
    headings = [
        f"{residency}, batches of {tokens}" for residency in ("resident", "stream") for tokens in batches
    ]
    return [Table("Estimated memory of the GPU, GB", ["form", *headings], rows)]


def gpu_cards(results: Results) -> list[Table]:
    """Return what each form is expected to do on each card."""
    if _NAME not in results:
        return []
    found = results[_NAME]["rows"]
    cards = list(found[0]["cards"])
    rows = [[card, *(_cell(row["cards"][card]) for row in found)] for card in cards]
    caption = "Estimated tokens/s, and the memory of the GPU in GB; *25 of 66* parts of a pair stay on it"
    return [Table(caption, ["card", *(row["form"] for row in found)], rows)]


def _cell(expected: Mapping[str, Any] | None) -> str:
    if expected is None:
        return "no bf16"
    speed, size = f"{expected['tokens_per_second']:,}", f"{expected['gigabytes']:.1f}"
    if expected["residency"] == "partial":
        return f"{speed}, {size}, *{expected['resident_stages']} of {expected['stages']}*"
    return f"{speed}, {size}" + (", streamed" if expected["residency"] == "stream" else "")

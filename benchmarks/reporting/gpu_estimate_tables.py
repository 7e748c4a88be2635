"""What a 7.6B pair would hold and do on well-known cards: arithmetic, no measurement."""

from __future__ import annotations

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
    rows = [[card, *(row["cards"][card].replace(" (estimated)", "") for row in found)] for card in cards]
    return [Table("Estimated", ["card", *(row["form"] for row in found)], rows)]

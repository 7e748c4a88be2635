"""Sizes of the extras, as a table of docs/install.md."""

from __future__ import annotations

from benchmarks.reporting.table import Results, Table, note_of


def extra_sizes(results: Results) -> list[Table]:
    """Return what an environment with each extra takes on disk, and what most of that is."""
    if "extra_sizes" not in results:
        return []
    result = results["extra_sizes"]
    rows = [
        [
            "stepscore alone" if row["extra"] == "none" else f"`{row['extra']}`",
            f"{row['mb']:,}",
            f"{row['packages']}",
            ", ".join(f"{name} {size:,}" for name, size in row["largest"].items()),
        ]
        for row in result["rows"]
    ]
    machine = result["machine"]
    note = (
        f"An environment of its own for each row, site-packages without pip; Python {machine['python']}, "
        f"{machine['system']}, newest versions. `make bench-extras` measures it. {note_of(result)}"
    )
    return [Table("", ["with the extra", "MB on disk", "packages", "most of it, MB"], rows, note.rstrip())]

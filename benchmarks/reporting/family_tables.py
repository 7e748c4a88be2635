"""The families that can be exported and their traits, as a table of README.md and docs/export.md."""

from __future__ import annotations

from benchmarks.reporting.table import Results, Table

from stepscore_export.families.rope import ROPE_KINDS
from stepscore_export.families.supported import FAMILIES


def families(_results: Results) -> list[Table]:
    """Return a row for each family of stepscore_export, the list that its errors name."""
    rows = [
        [
            f"`{family.model_type}`",
            "yes" if family.attention_bias else "no",
            "yes" if family.qk_norm else "no",
            ", ".join(family.published),
            ", ".join(family.measured) or "none",
        ]
        for family in FAMILIES
    ]
    kinds = ", ".join(f"`{kind}`" for kind in ROPE_KINDS)
    note = f"Each with RoPE {kinds}, full attention, grouped or all heads, a tied or separate head."
    headings = ["`model_type`", "q/k/v biases", "q/k norms", "published as", "measured on real weights"]
    return [Table("", headings, rows, note)]

"""The README's tables, filled anew between their markers. Pure functions."""

from __future__ import annotations

import re

from benchmarks.reporting.cpu_tables import TABLES
from benchmarks.reporting.table import Results, markdown

MARKED = re.compile(r"(<!-- bench:([a-z_]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def regenerated(readme: str, results: Results) -> str:
    """Return the README with every marked place filled anew; KeyError for a name that is not in TABLES.

    >>> print(regenerated("<!-- bench:sharing -->\\nstale\\n<!-- /bench -->\\nkept", {}))
    <!-- bench:sharing -->
    Not measured yet.
    <!-- /bench -->
    kept
    """

    def fill(match: re.Match[str]) -> str:
        tables = TABLES[match[2]](results)
        text = "\n\n".join(map(markdown, tables)) or "Not measured yet."
        return f"{match[1]}{text}\n{match[3]}"

    return MARKED.sub(fill, readme)

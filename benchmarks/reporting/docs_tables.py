"""Fill the tables of Markdown pages between their marks. Pure functions.

    <!-- bench:NAME -->  ...  <!-- /bench -->

NAME is a key of TABLES. `make docs` fills the pages, `make docs-check` fails where one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from benchmarks.reporting.cpu_tables import beam_search, latency, operators
from benchmarks.reporting.family_tables import families
from benchmarks.reporting.fidelity_tables import checkpoint_fidelity, fidelity, matrix, summary
from benchmarks.reporting.gpu_estimate_tables import gpu_cards, gpu_memory
from benchmarks.reporting.gpu_tables import gpu
from benchmarks.reporting.install_tables import extra_sizes
from benchmarks.reporting.memory_tables import full_size, full_size_scoring, memory, residency
from benchmarks.reporting.serve_tables import serve
from benchmarks.reporting.table import Results, Table, markdown
from benchmarks.reporting.throughput_tables import profile, sharing, throughput, verdicts

TABLES: Mapping[str, Callable[[Results], list[Table]]] = {
    "summary": summary,
    "throughput": throughput,
    "verdicts": verdicts,
    "sharing": sharing,
    "profile": profile,
    "latency": latency,
    "memory": memory,
    "residency": residency,
    "full_size": full_size,
    "full_size_scoring": full_size_scoring,
    "products": operators,
    "fidelity": fidelity,
    "checkpoint_fidelity": checkpoint_fidelity,
    "beam_search": beam_search,
    "matrix": matrix,
    "serve": serve,
    "gpu": gpu,
    "gpu_memory": gpu_memory,
    "gpu_cards": gpu_cards,
    "extra_sizes": extra_sizes,
    "families": families,
}
MARKED = re.compile(r"(<!-- bench:([a-z_]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def regenerated(page: str, results: Results) -> str:
    """Return the page with every marked place filled anew.

    >>> print(regenerated("<!-- bench:sharing -->\\nstale\\n<!-- /bench -->\\nkept", {}))
    <!-- bench:sharing -->
    Not measured yet.
    <!-- /bench -->
    kept

    Raises:
        KeyError: A mark names no table.
    """

    def fill(match: re.Match[str]) -> str:
        tables = TABLES[match[2]](results)
        text = "\n\n".join(map(markdown, tables)) or "Not measured yet."
        return f"{match[1]}{text}\n{match[3]}"

    return MARKED.sub(fill, page)

"""One page of all results, the tables of the README, and its plots: `make bench-report`.

Reads benchmarks/results/*.json; writes out/benchmarks.html (self-contained: no script, nothing is loaded),
benchmarks/plots/*.svg, and the README between its markers

    <!-- bench:NAME -->  ...  <!-- /bench -->

where NAME is one of `tables.TABLES`. `--check` writes nothing and fails where the README is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.reporting.cpu_tables import TABLES
from benchmarks.reporting.docs_tables import regenerated
from benchmarks.reporting.plots import all_plots
from benchmarks.reporting.table import Results, Table
from benchmarks.support.machine import QUICK_RESULTS, RESULTS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PLOTS = ROOT / "benchmarks" / "plots"
PAGE = ROOT / "out" / "benchmarks.html"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d242b }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #d5dbe1 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px }
caption { text-align: left; font-weight: 600; padding: .4rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e8ec; text-align: right }
th:first-child, td:first-child { text-align: left } th { background: #f4f6f8 }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
"""


def main() -> None:
    """Write the page, the plots and the README, or check the README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README is stale")
    parser.add_argument("--quick", action="store_true", help="the page alone, of what --quick runs wrote")
    options = parser.parse_args()
    results = read_results(QUICK_RESULTS if options.quick else RESULTS)
    if options.check:
        sys.exit(is_stale(README, results))
    plots = all_plots(results)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results, plots), encoding="utf-8")
    print(PAGE)
    if options.quick:
        return
    PLOTS.mkdir(exist_ok=True)
    for name, svg in plots.items():
        (PLOTS / f"{name}.svg").write_text(svg, encoding="utf-8")
    README.write_text(regenerated(README.read_text(encoding="utf-8"), results), encoding="utf-8")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every result of a folder by its name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def is_stale(readme: Path, results: Results) -> bool:
    """Return whether the README says something else than the results."""
    text = readme.read_text(encoding="utf-8")
    return regenerated(text, results) != text


def page(results: Results, plots: Mapping[str, str]) -> str:
    """Return the HTML of all results: machines first, then a section for each kind of table."""
    sections = [_section("machines", [machines(results)], None)]
    for name, tables in TABLES.items():
        found = tables(results)
        if found:
            sections.append(_section(name, found, plots.get(name)))
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>stepscore: benchmarks</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>stepscore: benchmarks</h1>\n{body}\n</body></html>\n"
    )


def machines(results: Results) -> Table:
    """Return the machine that each result was measured on."""
    rows = []
    for name, result in results.items():
        machine = result["machine"]
        packages = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
        rows.append(
            [
                name + (" (quick)" if result.get("quick") else ""),
                f"{machine['cpu']} ({', '.join(machine['cpu_features'])})",
                f"{machine['cores']}",
                f"{machine['memory_gb']} GB",
                f"{machine['load_average']}",
                f"Python {machine['python']}, {packages}",
            ]
        )
    headings = ["result", "CPU", "cores", "memory", "load average at the end", "versions"]
    return Table("Where each result comes from", headings, rows)


def _section(name: str, tables: Iterable[Table], plot: str | None) -> str:
    parts = [f"<h2>{escape(name)}</h2>", *([plot] if plot else []), *map(_html, tables)]
    return f"<section>{chr(10).join(parts)}</section>"


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table><caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


if __name__ == "__main__":
    main()

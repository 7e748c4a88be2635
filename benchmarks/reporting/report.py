"""Write one HTML page of all results: `make bench-report` -> out/benchmarks.html.

The page is self-contained: it has no script and loads nothing. `--quick` shows the results of --quick runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from benchmarks.reporting.docs_tables import TABLES
from benchmarks.reporting.plots import all_plots
from benchmarks.reporting.table import Results, Table
from benchmarks.support.results import QUICK_RESULTS, RESULTS, read_results

ROOT = Path(__file__).resolve().parents[2]
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
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="show the results of --quick runs")
    options = parser.parse_args()
    results = read_results(QUICK_RESULTS if options.quick else RESULTS)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results, all_plots(results)), encoding="utf-8")
    print(PAGE)


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
    rows = "\n".join(f"<tr>{''.join(f'<td>{_bold(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    caption = escape(table.caption)
    html = (
        f'<div class="scroll"><table>{"" if table.folded else f"<caption>{caption}</caption>"}\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>{note}</div>"
    )
    return f"<details><summary>{caption}</summary>{html}</details>" if table.folded else html


def _bold(cell: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(cell))


if __name__ == "__main__":
    main()

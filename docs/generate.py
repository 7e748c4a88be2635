"""Write the generated documentation, or fail where it is stale: `make docs`, `make docs-check`.

    python -m docs.generate            write what has changed
    python -m docs.generate --check    write nothing; print a diff and exit with 1 if anything is stale

Generated are cli.md, api.md, errors.md, schema.md with schemas/*.json, the plots, and every table between
`<!-- bench:NAME -->` marks of a Markdown page (benchmarks/reporting/docs_tables.py).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from benchmarks.reporting.docs_tables import MARKED, regenerated
from benchmarks.reporting.plots import all_plots
from benchmarks.support.results import RESULTS, read_results

import stepscore
import stepscore_export
from docs import api_page, cli_page, errors_page, schema_page
from stepscore.artifact.manifest import Manifest
from stepscore.cli.results import result_schemas
from stepscore.jobs.schema import json_schemas

ROOT = Path(__file__).resolve().parents[1]
MAX_DIFF_LINES = 60
"""Lines shown of each stale file; a line of a plot may be long."""


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    options = parser.parse_args()
    changed = stale(ROOT, generated(ROOT))
    if not options.check:
        for name, text in changed.items():
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(text, encoding="utf-8")
            print(name)
        return
    for name, text in changed.items():
        sys.stdout.writelines(diff(name, _read(ROOT / name), text))
    if changed:
        sys.exit(f"stale: {', '.join(changed)}. Run `make docs` and commit the result.")


def generated(root: Path) -> dict[str, str]:
    """Return the text of every generated file by its path in the repository."""
    results = read_results(RESULTS)
    schemas = json_schemas() | result_schemas() | {"manifest": msgspec.json.schema(Manifest)}
    cleaned = {name: schema_page.cleaned(schema) for name, schema in schemas.items()}
    marked = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    pages = {path.relative_to(root).as_posix(): _read(path) for path in marked}
    return {
        **{name: regenerated(text, results) for name, text in pages.items() if MARKED.search(text)},
        **{f"benchmarks/plots/{name}.svg": svg for name, svg in all_plots(results).items()},
        "docs/api.md": api_page.page([stepscore, stepscore_export]),
        "docs/cli.md": cli_page.page(),
        "docs/errors.md": errors_page.page(root),
        "docs/schema.md": schema_page.page(cleaned),
        **{f"docs/schemas/{name}.json": schema_page.as_file(schema) for name, schema in cleaned.items()},
    }


def stale(root: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return those of the files whose text on disk is another one."""
    return {name: text for name, text in files.items() if _read(root / name) != text}


def diff(name: str, old: str, new: str) -> Iterator[str]:
    """Yield the first lines of a unified diff, each cut to 200 characters."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{name} (on disk)", f"{name} (generated)", n=1, lineterm=""
    )
    for count, line in enumerate(lines):
        if count == MAX_DIFF_LINES:
            yield "...\n"
            return
        yield f"{line[:200]}\n"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    main()

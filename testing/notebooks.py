"""Run the code cells of a notebook in this process, without Jupyter: seconds and forty packages fewer.

    python -m testing.notebooks docs/notebooks/best_of_n.ipynb      run it, and write the outputs into it

Outputs are what a kernel stores: standard output, the value of the last expression, and open figures of
matplotlib. Standard error, where progress bars are, is not stored. Cells are plain Python.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from matplotlib import pyplot

Output = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Return a notebook as JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(path: Path) -> Iterator[list[Output]]:
    """Yield the outputs of each code cell, run in the notebook's folder."""
    names: dict[str, Any] = {}
    pyplot.switch_backend("Agg")
    with chdir(path.parent):
        for number, cell in enumerate(code_cells(read(path)), start=1):
            yield list(_outputs("".join(cell["source"]), names, number))


def _outputs(source: str, names: dict[str, Any], number: int) -> Iterator[Output]:
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())}
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data = {"text/html": _lines(value._repr_html_()), **data}
        yield {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
    yield from _figures()


def _figures() -> Iterator[Output]:
    """Yield the open figures, and close them."""
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        data = {
            "image/png": base64.b64encode(picture.getvalue()).decode(),
            "text/plain": [f"<Figure size {figure.bbox.width:.0f}x{figure.bbox.height:.0f}>"],
        }
        yield {"data": data, "metadata": {}, "output_type": "display_data"}
    pyplot.close("all")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(path: Path) -> None:
    notebook = read(path)
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), run(path), strict=True), start=1):
        cell["execution_count"], cell["outputs"] = number, outputs
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]).resolve())

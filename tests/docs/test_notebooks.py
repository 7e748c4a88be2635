"""Notebooks are true: their cells run as they stand, and give the outputs that are stored in them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="notebooks plot with matplotlib, of the extra [plots]")

from matplotlib import image
from testing import notebooks

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?(?!\w)")


def parts(text: list[str] | str) -> tuple[list[str], list[float]]:
    """A text without its numbers, and its numbers."""
    whole = "".join(text)
    return NUMBER.split(whole), [float(number) for number in NUMBER.findall(whole)]


def assert_same_text(stored: list[str] | str, given: list[str] | str) -> None:
    """Numbers may differ by the rounding of another machine: a reward by less than a thousandth of a nat."""
    (words, numbers), (same_words, same_numbers) = parts(stored), parts(given)
    assert words == same_words
    np.testing.assert_allclose(numbers, same_numbers, rtol=1e-3, atol=1e-6)


def pixels(png: str) -> np.ndarray:
    return image.imread(io.BytesIO(base64.b64decode(png)))


def assert_same_output(stored: notebooks.Output, given: notebooks.Output) -> None:
    assert stored["output_type"] == given["output_type"]
    assert stored.get("data", {}).keys() == given.get("data", {}).keys()
    assert_same_text(stored.get("text", ""), given.get("text", ""))
    for kind, content in given.get("data", {}).items():
        if kind == "image/png":  # another version of matplotlib smooths its lines and letters in another way
            assert np.abs(pixels(stored["data"][kind]) - pixels(content)).mean() < 0.02
        else:
            assert_same_text(stored["data"][kind], content)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_gives_the_outputs_that_are_stored_in_it(path: Path) -> None:
    stored = [cell["outputs"] for cell in notebooks.code_cells(notebooks.read(path))]
    for of_cell, given in zip(stored, notebooks.run(path), strict=True):
        assert len(of_cell) == len(given)
        for one, other in zip(of_cell, given, strict=True):
            assert_same_output(one, other)


def test_other_numbers_and_other_words_are_seen() -> None:
    assert_same_text(["n = 4: 92.9 %\n"], "n = 4: 92.90001 %\n")
    for other in ("n = 4: 93.9 %\n", "n = 5: 92.9 %\n", "m = 4: 92.9 %\n"):
        with pytest.raises(AssertionError):
            assert_same_text(["n = 4: 92.9 %\n"], other)

"""The public face of the runtime: every name is there, under the name it is given, and nothing else."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path

import pytest

import stepscore


@pytest.mark.parametrize("name", [name for name in stepscore.__all__ if name != "__version__"])
def test_a_public_name_is_the_object_of_that_name(name: str) -> None:
    assert getattr(stepscore, name).__name__ == name


def test_the_version_is_that_of_the_distribution() -> None:
    assert stepscore.__version__ == version("stepscore")


def test_dir_lists_the_public_names_and_no_other() -> None:
    assert dir(stepscore) == sorted(stepscore.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are all that a type checker knows of this module."""
    tree = ast.parse(Path(stepscore.__file__).read_text(encoding="utf-8"))
    seen = {
        (alias.asname, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    homes = {(name, f"stepscore.{home}") for name, home in stepscore._HOMES.items()}
    assert seen == homes


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stepscore.nothing  # noqa: B018

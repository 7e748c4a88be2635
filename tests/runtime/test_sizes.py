"""Sizes mean the same from Python as on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.solutions import SOLUTIONS, alone, load

from stepscore.cli.main import main
from stepscore.errors import DoesNotFit
from stepscore.scorer import Scorer
from stepscore.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("4.5 gb", 4_500_000_000), ("900M", 900_000_000), ("1B", 1)]
)
def test_a_size_is_read_in_powers_of_ten(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "4 GiB", "1e9B", "4", "1.2.3MB", "nanGB"])
def test_a_text_that_is_no_size_is_rejected_from_python_and_on_the_command_line(
    tiny_pair: Path, text: str
) -> None:
    with pytest.raises(ValueError, match=r"invalid size|has no unit") as error:
        Scorer.load(tiny_pair, memory_limit=text)
    done = CliRunner().invoke(main, ["score", str(tiny_pair), "-", f"--memory-limit={text}"])
    assert done.exit_code == 2
    assert str(error.value) in " ".join(done.stderr.split())


def test_a_memory_limit_as_text_is_that_number_of_bytes(tiny_pair: Path) -> None:
    with load(tiny_pair, memory_limit="4GB") as one, load(tiny_pair, memory_limit=4 * 10**9) as other:
        assert alone(one, SOLUTIONS[0]) == alone(other, SOLUTIONS[0])
    with pytest.raises(DoesNotFit, match=r"the limit is 0\.00 GB"):
        load(tiny_pair, memory_limit="1kB")

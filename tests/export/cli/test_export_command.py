"""`stepscore export`: what it prints, and how it rejects what it cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from testing.checkpoints import ODD, write_checkpoint, write_tokenizer
from testing.pairs import Checkpoints

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture
def models(tiny_checkpoints: Checkpoints) -> list[str | Path]:
    return ["--policy", tiny_checkpoints.policy, "--reference", tiny_checkpoints.reference]


def test_the_command_seals_a_pair_and_says_so(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "pair")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "sealed after" in result.stderr
    assert "self-test on cpu" in result.stderr
    Pair.open(tmp_path / "pair").verify()


def test_quiet_prints_nothing(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "pair", "--precision", "fp32", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_a_dry_run_prints_sizes_and_writes_nothing(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "place" / "pair", "--dry-run", "--precision", "int8")
    assert result.exit_code == 0
    for word in ("source", "output", "disk", "memory", "time", "MB"):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_an_output_that_is_taken(models: list[str | Path], tiny_pair: Path) -> None:
    assert run(*models, "--output", tiny_pair, "--dry-run").exit_code == 3


def a_pair_stands_there(tmp_path: Path, pair: Path) -> list[str | Path]:
    return ["--output", shutil.copytree(pair, tmp_path / "taken")]


def no_such_policy(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--policy", tmp_path / "nowhere"]


def a_mismatched_reference(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--reference", write_checkpoint(tmp_path / "other", ODD)]


def a_reference_without_weights(tmp_path: Path, _pair: Path) -> list[str | Path]:
    folder = write_checkpoint(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    return ["--output", tmp_path / "pair", "--reference", folder]


def a_template_that_is_none(tmp_path: Path, _pair: Path) -> list[str | Path]:
    folder = write_checkpoint(tmp_path / "templateless")
    write_tokenizer(folder, chat_template="{{ nothing")
    return ["--output", tmp_path / "pair", "--policy", folder]


def fp32_for_cuda(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--precision", "fp32", "--target", "cuda"]


def an_odd_block_size(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--precision", "int8", "--block-size", "33"]


def an_output_below_a_file(tmp_path: Path, _pair: Path) -> list[str | Path]:
    (tmp_path / "file").touch()
    return ["--output", tmp_path / "file" / "pair"]


REFUSED = [
    a_pair_stands_there,
    no_such_policy,
    a_mismatched_reference,
    a_reference_without_weights,
    a_template_that_is_none,
    fp32_for_cuda,
    an_odd_block_size,
    an_output_below_a_file,
]


@pytest.mark.parametrize("refused", REFUSED)
def test_rejected_export_exits_3_with_an_error(
    models: list[str | Path],
    tmp_path: Path,
    tiny_pair: Path,
    refused: Callable[[Path, Path], list[str | Path]],
) -> None:
    result = run(*models, *refused(tmp_path, tiny_pair), "--quiet")
    assert result.exit_code == 3
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert [line.split(":")[0] for line in rest] in ([], ["hint"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--policy'"),
        (["--policy", "x"], "Missing option '--reference'"),
        (["--precision", "int3"], "'int3' is not one of"),
        (["--beta", "-1"], "Invalid value for '--beta'"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr

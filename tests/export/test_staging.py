"""Staging: who may write where, what may be replaced, and that nothing is left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.staged_pairs import NEW, OLD, beta_of, hidden_beside, in_child, reseal, without_sync

from stepscore.artifact.manifest import MANIFEST
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore_export.staging import stage


@pytest.fixture(autouse=True)
def _quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    without_sync(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "pair"


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Every file, link and folder below, with its content."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


# No permission


def as_nobody() -> None:
    """Root may write anywhere, so a child of root gives its rights up first."""
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


def refuses(target: Path) -> None:
    with pytest.raises(OutputUnwritable, match="Permission denied"), stage(target, force=True):
        pytest.fail("it was staged")


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "locked"])
def test_a_parent_that_may_not_be_written_is_an_unwritable_output(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)
        parent.chmod(mode)

        def export() -> None:
            as_nobody()
            refuses(parent / "pair")

        assert in_child(export) == 0
        parent.chmod(0o755)
        assert list(parent.iterdir()) == []


def test_a_folder_that_may_not_be_read_is_an_unwritable_output() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pair"
        target.mkdir(mode=0)
        Path(folder).chmod(0o777)

        def export() -> None:
            as_nobody()
            refuses(target)

        assert in_child(export) == 0


def test_a_parent_that_is_a_file_is_an_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputUnwritable, match="file/pair"), stage(tmp_path / "file" / "pair", force=False):
        pytest.fail("it was staged")


# Two at once


def test_a_second_export_to_the_same_target_is_refused(tiny_pair: Path, target: Path) -> None:
    with stage(target, force=False), pytest.raises(OutputUnwritable, match="another export"):
        reseal(tiny_pair, target)
    reseal(tiny_pair, target)
    assert beta_of(target) == NEW


def test_a_lock_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".pair.lock")
    with pytest.raises(OutputUnwritable, match="not a regular file"), stage(tmp_path / "pair", force=False):
        pytest.fail("it was staged")


def test_the_refused_export_does_not_disturb_the_first(tiny_pair: Path, target: Path) -> None:
    with stage(target, force=False) as staged:
        staged.write("first", b"1")
        with pytest.raises(OutputUnwritable), stage(target, force=False):
            pass
        assert (staged.folder / "first").read_bytes() == b"1"
        with pytest.raises(OutputUnwritable), stage(target, force=False):
            pass


def test_exports_to_neighbours_do_not_disturb_each_other(tiny_pair: Path, target: Path) -> None:
    with stage(target, force=False):
        reseal(tiny_pair, target.with_name("other"))
    assert beta_of(target.with_name("other")) == NEW


def test_one_of_many_concurrent_exports_wins(tiny_pair: Path, target: Path) -> None:
    target.parent.mkdir()
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            os._exit(in_child(lambda: reseal(tiny_pair, target)))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 3, 3, 3, 3, 3]
    assert beta_of(target) == NEW
    assert hidden_beside(target) == []


# What may be replaced


def a_file(target: Path, _pair: Path) -> None:
    target.write_text("mine")


def a_link_to_an_empty_folder(target: Path, _pair: Path) -> None:
    target.with_name("empty").mkdir()
    target.symlink_to("empty")


def a_dangling_link(target: Path, _pair: Path) -> None:
    target.symlink_to("nowhere")


def a_folder_with_something_else(target: Path, _pair: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("mine")


def a_pair_with_something_else(target: Path, pair: Path) -> None:
    reseal(pair, target)
    (target / "notes.txt").write_text("mine")


def another_programs_manifest(target: Path, _pair: Path) -> None:
    target.mkdir()
    (target / MANIFEST).write_text('{"manifest_version": 3}')
    (target / "background.js").write_text("mine")


def a_pair(target: Path, pair: Path) -> None:
    reseal(pair, target)


NEVER = [
    a_file,
    a_link_to_an_empty_folder,
    a_dangling_link,
    a_folder_with_something_else,
    a_pair_with_something_else,
    another_programs_manifest,
]


@pytest.mark.parametrize(
    ("occupy", "force"),
    [*((occupy, True) for occupy in NEVER), *((occupy, False) for occupy in [*NEVER, a_pair])],
)
def test_force_rejects_and_keeps_foreign_outputs(
    tiny_pair: Path, target: Path, occupy: Callable[[Path, Path], None], *, force: bool
) -> None:
    target.parent.mkdir()
    occupy(target, tiny_pair)
    before = snapshot(target.parent)
    with pytest.raises(OutputExists):
        reseal(tiny_pair, target, force=force)
    assert snapshot(target.parent) == before


def test_an_empty_folder_becomes_the_pair(tiny_pair: Path, target: Path) -> None:
    target.mkdir(parents=True)
    reseal(tiny_pair, target)
    assert beta_of(target) == NEW


def test_force_replaces_a_pair(tiny_pair: Path, target: Path) -> None:
    reseal(tiny_pair, target, beta=OLD)
    reseal(tiny_pair, target, force=True)
    assert beta_of(target) == NEW


def test_force_replaces_a_damaged_pair(tiny_pair: Path, target: Path) -> None:
    reseal(tiny_pair, target, beta=OLD)
    (target / MANIFEST).write_text("{")
    reseal(tiny_pair, target, force=True)
    assert beta_of(target) == NEW


# Nothing is left behind


def test_successful_export_leaves_no_hidden_files(tiny_pair: Path, target: Path) -> None:
    reseal(tiny_pair, target)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OutputUnwritable])
def test_failed_export_leaves_nothing(target: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with stage(target, force=False) as staged:
            staged.write("half", b"done")
            raise error("stop")

    with pytest.raises(error):
        fail()
    assert list(target.parent.iterdir()) == []


def test_next_export_removes_leftovers_of_a_killed_one(tiny_pair: Path, target: Path) -> None:
    left = target.with_name(f".{target.name}.stage") / "policy"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(b"half")
    target.with_name(f".{target.name}.lock").touch()
    reseal(tiny_pair, target)
    assert beta_of(target) == NEW
    assert hidden_beside(target) == []


def test_the_manifest_is_the_last_file_written(tiny_pair: Path, target: Path) -> None:
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        write_bytes = Path.write_bytes

        def noted(path: Path, data: bytes) -> int:
            written.append(path.name)
            return write_bytes(path, data)

        patch.setattr(Path, "write_bytes", noted)
        reseal(tiny_pair, target)
    assert written[-1] == MANIFEST
    assert written.count(MANIFEST) == 1

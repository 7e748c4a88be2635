"""A target folder is the old pair or the new one: whenever an export dies, whatever the disk refuses.

Processes are forked and killed for real. What a power failure does to unsynced pages cannot be shown here.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testing.pairs import Checkpoints

from stepscore.artifact.manifest import MANIFEST, Selftest
from stepscore.artifact.pair import Pair
from stepscore.enums import Precision
from stepscore.errors import OutputExists, OutputUnwritable, StepscoreError
from stepscore.fileio import os_errors_as_output_errors
from stepscore.records import Record
from stepscore_export.checkpoint import chat_template
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline import export as pair_module
from stepscore_export.pipeline import plan as plan_module
from stepscore_export.pipeline.export import export_pair
from stepscore_export.staging import stage
from stepscore_export.validation.texts import Texts
from stepscore_export.weights.weight_file import WeightFile

OLD, NEW = 0.25, 0.5  # beta tells the pairs apart
KILLED = -signal.SIGKILL


def reseal(source: Path, target: Path, *, beta: float = NEW, force: bool = False) -> None:
    """Export a pair the quick way: its files are copied out of another."""
    manifest = Pair.open(source).manifest
    with stage(target, force=force) as staged:
        for unit in manifest.units:
            with os_errors_as_output_errors(target):
                (staged.folder / unit.folder).mkdir()
        for name in manifest.files:
            staged.write(name, (source / name).read_bytes())
        staged.seal(msgspec.structs.replace(manifest, beta=beta, files=staged.files))


def beta_of(target: Path) -> float | None:
    """Which pair stands at the target, every byte of it verified; None where nothing stands there."""
    if not os.path.lexists(target):
        return None
    pair = Pair.open(target)
    pair.verify()
    return pair.manifest.beta


def hidden_beside(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path.name.startswith(".")]


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


# Something happens at the n-th change of the disk

CHANGES = [
    (os, "mkdir"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "write_bytes"),
    (WeightFile, "_write"),
]


class AtChange:
    """Counts changes of the disk and calls `strike` instead of the n-th; a write is half done by then."""

    def __init__(self, number: int, strike: Callable[[], None]) -> None:
        self.count = 0
        self._number = number
        self._strike = strike

    def install(self, patch: pytest.MonkeyPatch, changes: list[tuple[Any, str]]) -> None:
        for owner, name in changes:
            patch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self._number:
                if isinstance(args[-1], bytes | memoryview) and len(args) == 2:
                    change(args[0], args[1][: len(args[1]) // 2])
                self._strike()
            return change(*args, **keywords)

        return counted


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a power failure nothing depends on it: a killed process loses nothing the kernel has."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process; the exit code is that of the command line, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        action()
        os._exit(0)
    except StepscoreError as error:
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill_at(number: int, action: Callable[[], None]) -> int:
    def doomed() -> None:
        AtChange(number, kill).install(pytest.MonkeyPatch(), CHANGES)
        action()

    return in_child(doomed)


def changes_of(action: Callable[[], None], changes: list[tuple[Any, str]] = CHANGES) -> int:
    counter = AtChange(0, kill)
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch, changes)
        action()
    return counter.count


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "pair"


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, OLD], ids=["fresh", "replacing"])
def test_kill_at_any_change_leaves_the_old_pair_or_the_new_one(
    tiny_pair: Path, target: Path, tmp_path: Path, old: float | None
) -> None:
    if old:
        reseal(tiny_pair, tmp_path / "count" / "pair", beta=OLD)
    total = changes_of(lambda: reseal(tiny_pair, tmp_path / "count" / "pair", force=True))
    seen = set()
    for number in range(1, total + 1):
        shutil.rmtree(target, ignore_errors=True)
        if old:
            reseal(tiny_pair, target, beta=OLD)
        assert kill_at(number, lambda: reseal(tiny_pair, target, force=True)) == KILLED
        found = beta_of(target)
        if found is None:  # killed between two renames: the next export puts the old pair back first
            with pytest.raises(KeyboardInterrupt), stage(target, force=True):
                raise KeyboardInterrupt
            assert beta_of(target) == old
        seen.add(found)
        reseal(tiny_pair, target, force=True)
        assert beta_of(target) == NEW
        assert hidden_beside(target) == []
    assert {old, NEW} <= seen <= {None, old, NEW}


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, OLD], ids=["fresh", "replacing"])
def test_a_full_disk_at_any_change_leaves_what_was_there(
    tiny_pair: Path, target: Path, tmp_path: Path, old: float | None
) -> None:
    changes = [change for change in CHANGES if change[1] not in {"unlink", "rmdir"}]  # need no space
    reseal(tiny_pair, tmp_path / "count" / "pair", beta=OLD)
    total = changes_of(lambda: reseal(tiny_pair, tmp_path / "count" / "pair", force=True), changes)
    target.parent.mkdir()
    refused = []
    for number in range(1, total + 1):
        shutil.rmtree(target, ignore_errors=True)
        if old:
            reseal(tiny_pair, target, beta=OLD)
        with pytest.MonkeyPatch.context() as patch:
            AtChange(number, no_space).install(patch, changes)
            with suppress(OutputUnwritable):
                reseal(tiny_pair, target, force=True)
                assert beta_of(target) == NEW
                continue
        refused.append(beta_of(target))
        assert hidden_beside(target) == []
    assert len(refused) > 30
    assert set(refused[:-1]) == {old}  # the last: the new pair is there, but perhaps not yet on the disk


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, tiny_pair: Path) -> None:
    """Leave out what writes nothing and takes long: rendering the template, running the pair on much text."""
    template = Pair.open(tiny_pair).manifest.template
    monkeypatch.setattr(chat_template, "literals", lambda _chat_template: template)
    monkeypatch.setattr(pair_module, "run_selftest", lambda *_: Selftest("cpu", 1, 0.0, 0.0))
    one_text = Texts(None, (Record("1 + 1?", ("2.",)),))
    monkeypatch.setattr(plan_module, "bundled_texts", lambda: one_text)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export")
def test_an_export_killed_at_any_write_leaves_no_pair_or_a_valid_one(
    tiny_checkpoints: Checkpoints, target: Path, tmp_path: Path
) -> None:
    """Every eighth change, and all of the last thirty."""
    models = tiny_checkpoints.policy, tiny_checkpoints.reference

    def export(output: Path = target) -> None:
        export_pair(*models, output, ExportOptions(Precision.FP32), force=True)

    total = changes_of(lambda: export(tmp_path / "count" / "pair"))
    for number in [*range(1, total - 30, 8), *range(total - 30, total + 1)]:
        assert kill_at(number, export) == KILLED
        beta_of(target)
    export()
    assert beta_of(target) is not None
    assert hidden_beside(target) == []


@pytest.mark.usefixtures("quick_export")
def test_a_file_size_limit_is_an_unwritable_output(
    tiny_checkpoints: Checkpoints, target: Path, tiny_pair: Path
) -> None:
    """The kernel refuses in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    models = tiny_checkpoints.policy, tiny_checkpoints.reference

    def export() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, 100_001))
        export_pair(*models, target, ExportOptions(Precision.FP32), force=True)

    reseal(tiny_pair, target, beta=OLD)
    assert in_child(export) == OutputUnwritable.exit_code
    assert beta_of(target) == OLD
    assert hidden_beside(target) == []


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

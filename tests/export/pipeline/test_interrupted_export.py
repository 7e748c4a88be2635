"""A target folder is the old pair or the new one: whenever an export dies, whatever the disk refuses.

Processes are forked and killed for real. What a power failure does to unsynced pages cannot be shown here.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from testing.pairs import Checkpoints
from testing.staged_pairs import NEW, OLD, beta_of, hidden_beside, in_child, reseal, without_sync

from stepscore.artifact.manifest import Selftest
from stepscore.artifact.pair import Pair
from stepscore.enums import Precision
from stepscore.errors import OutputUnwritable
from stepscore.records import Record
from stepscore_export.checkpoint import chat_template
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline import export as pair_module
from stepscore_export.pipeline import plan as plan_module
from stepscore_export.pipeline.export import export_pair
from stepscore_export.staging import stage
from stepscore_export.validation.texts import Texts
from stepscore_export.weights.weight_file import WeightFile

KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def _quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    without_sync(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "pair"


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


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
    """Every twentieth change, and all of the last twelve, where it is sealed.

    That no single change is different, the tests above show on a pair whose files are copied.
    """
    models = tiny_checkpoints.policy, tiny_checkpoints.reference

    def export(output: Path = target) -> None:
        export_pair(*models, output, ExportOptions(Precision.FP32), force=True)

    total = changes_of(lambda: export(tmp_path / "count" / "pair"))
    for number in [*range(1, total - 12, 20), *range(total - 12, total + 1)]:
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

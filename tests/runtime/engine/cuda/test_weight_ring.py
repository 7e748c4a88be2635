"""The ring of buffers: every stage at its turn, copied ahead, whatever becomes of a window."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepscore.artifact.manifest import Extent
from stepscore.artifact.tensor_table import Stage
from stepscore.engine.cuda.copies import HostCopies
from stepscore.engine.cuda.device import Buffer, HostDevice, host_bytes
from stepscore.engine.cuda.mapped_file import MappedFile
from stepscore.engine.cuda.weight_ring import StoredStage, WeightRing
from stepscore.memory.gpu import evenly_spread

SIZE = 64


def stored(count: int) -> list[StoredStage]:
    """Stages of growing sizes whose bytes are their own number."""
    sizes = [SIZE + index for index in range(count)]
    path = Path(tempfile.mkdtemp()) / "weights.bin"
    path.write_bytes(np.repeat(np.arange(count, dtype=np.uint8), sizes).tobytes())
    file, starts = MappedFile(path), np.cumsum([0, *sizes])
    shutil.rmtree(path.parent)
    return [
        StoredStage(Stage(str(index), Extent(int(starts[index]), size), {}), file)
        for index, size in enumerate(sizes)
    ]


class NotedCopies(HostCopies):
    """Notes which stage each copy is of."""

    def __init__(self) -> None:
        self.copied: list[int] = []

    def copy(self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False) -> None:
        super().copy(source, target, offset, repeated=repeated)
        self.copied.append(int(source[0]))


def contents(ring: WeightRing) -> list[int]:
    """Run a window; every byte of every stage is its own when it is its turn."""
    found = []
    for loaded in ring.in_turn():
        size = loaded.stage.extent.size
        (number,) = {*host_bytes(loaded.buffer.address, size).tolist()}
        found.append(number)
    return found


@given(st.integers(1, 9), st.data(), st.integers(1, 3))
def test_every_stage_has_its_turn_in_every_window(count: int, data: st.DataObject, slots: int) -> None:
    kept = evenly_spread(data.draw(st.integers(0, count)), count)
    ring = WeightRing(HostDevice(), NotedCopies(), stored(count), kept, slots=slots)
    for _ in range(3):
        assert contents(ring) == list(range(count))
    ring.close()


@given(st.integers(1, 9), st.data(), st.integers(0, 9))
def test_a_window_that_was_left_changes_no_other(count: int, data: st.DataObject, after: int) -> None:
    kept = evenly_spread(data.draw(st.integers(0, count)), count)
    ring = WeightRing(HostDevice(), NotedCopies(), stored(count), kept)
    left = ring.in_turn()
    for _ in range(min(after, count)):
        next(left)
    left.close()
    assert contents(ring) == list(range(count))
    ring.close()


def test_memory_is_that_of_the_kept_stages_and_two_of_the_others() -> None:
    device = HostDevice()
    WeightRing(device, NotedCopies(), stored(4), frozenset({1, 3}))
    assert device.num_bytes == (SIZE + 1) + (SIZE + 3) + 2 * (SIZE + 2)


def test_weights_are_copied_once_a_window_and_kept_ones_once_at_all() -> None:
    copies = NotedCopies()
    ring = WeightRing(HostDevice(), copies, stored(5), frozenset({0}))
    for _ in range(3):
        contents(ring)
    ring.close()
    assert copies.copied[0] == 0
    assert copies.copied[1:][:12] == [1, 2, 3, 4] * 3


def test_the_next_stage_is_copied_while_one_runs() -> None:
    """A copy that waits for the reader would never end, were the reader to wait for it."""
    running = threading.Event()

    class Slow(HostCopies):
        def copy(
            self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False
        ) -> None:
            if source[0] == 2:
                assert running.wait(10)
            super().copy(source, target, offset, repeated=repeated)

    ring = WeightRing(HostDevice(), Slow(), stored(4), frozenset())
    seen = []
    for loaded in ring.in_turn():
        seen.append(loaded.stage.name)
        if loaded.stage.name == "1":
            running.set()
    assert seen == ["0", "1", "2", "3"]
    ring.close()


def test_an_error_of_a_copy_is_raised_at_its_stage() -> None:
    class Failing(HostCopies):
        def copy(
            self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False
        ) -> None:
            if source[0] == 2:
                raise OSError("the disk is gone")
            super().copy(source, target, offset, repeated=repeated)

    ring = WeightRing(HostDevice(), Failing(), stored(4), frozenset())
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(loaded.stage.name for loaded in ring.in_turn())
    ring.close()

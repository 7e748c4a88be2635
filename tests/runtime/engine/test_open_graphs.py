"""Residency: which graphs are open at once, and what they leave in memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from testing.engine_runs import run as run_window
from testing.forms import MERGED
from testing.graphs import LAYERS
from testing.pairs import PairOf
from testing.sequences import tokens

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort import model_runner
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.sessions import Sessions
from stepscore.enums import Coding, Precision, Residency


@dataclass
class Ledger:
    """Which graphs were opened and which are still held by anybody."""

    opened: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, name: str, session: ort.InferenceSession) -> None:
        with self.lock:
            self.opened.append(name)
            self.held.append(name)
            self.most = max(self.most, len(self.held))
        weakref.finalize(session, self.held.remove, name)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Sessions are counted as they are opened, whoever opens them, and as they are released."""
    kept, open_session = Ledger(), Sessions.open

    def noted(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        session = open_session(self, path, on_host=on_host)
        kept.enter(f"{path.parent.name}/{path.name}", session)
        return session

    monkeypatch.setattr(Sessions, "open", noted)
    return kept


@pytest.fixture
def two_batches() -> list[Batch]:
    return [pack(tokens(20), [0]), pack(tokens(7, 9), [0, 3])]


@pytest.fixture(scope="module")
def coded_pair(pair_of: PairOf) -> Path:
    return pair_of(Precision.INT8, coding=Coding.DIFFERENCE, products=MERGED[Precision.INT8].products)


def stages(folder: str) -> list[str]:
    names = ["embed", *(f"layer-{index:02d}" for index in range(LAYERS)), "head-00"]
    return [f"{folder}/{name}.onnx" for name in names]


@pytest.mark.parametrize(("ahead", "most"), [(True, 2), (False, 1)])
def test_stream_opens_at_most_two_graphs_or_one(
    tiny_pair: Path, ledger: Ledger, two_batches: list[Batch], ahead: bool, most: int
) -> None:
    run_window(Pair.open(tiny_pair), two_batches, Residency.STREAM, prefetch_next_layer=ahead)
    assert ledger.opened == [*stages("policy"), *stages("reference")]
    assert ledger.most <= most
    assert ledger.held == []
    assert not threads()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows its mapped files on Linux only")
@pytest.mark.parametrize("residency", [Residency.STREAM, Residency.ALTERNATE])
def test_activations_do_not_keep_released_weights_mapped(
    pair_copy: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch], residency: Residency
) -> None:
    """An output that ONNX Runtime allocates keeps its session, and the session maps the weight file.

    The copy is nobody else's: other pairs may be open.
    """
    still_mapped, open_session = [], Sessions.open

    def noted(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        still_mapped.append(str(pair_copy) in Path("/proc/self/maps").read_text())
        return open_session(self, path, on_host=on_host)

    monkeypatch.setattr(Sessions, "open", noted)
    run_window(Pair.open(pair_copy), two_batches, residency, prefetch_next_layer=False)
    assert len(still_mapped) > 4
    assert not any(still_mapped)


def test_stream_opens_every_graph_once_a_window(
    coded_pair: Path, ledger: Ledger, two_batches: list[Batch]
) -> None:
    engine = OrtEngine(Pair.open(coded_pair), EngineOptions(residency=Residency.STREAM))
    assert ledger.opened == []
    assert len(list(engine.run(two_batches))) == 2
    assert ledger.opened == stages("both")
    list(engine.run(two_batches))
    assert ledger.opened == [*stages("both"), *stages("both")]


def test_alternate_has_one_model_open(tiny_pair: Path, ledger: Ledger, two_batches: list[Batch]) -> None:
    engine = OrtEngine(Pair.open(tiny_pair), EngineOptions(residency=Residency.ALTERNATE))
    assert ledger.opened == []
    list(engine.run(two_batches))
    names = ("embed", "body", "head")
    assert ledger.opened == [f"{unit}/{name}.onnx" for unit in ("policy", "reference") for name in names]
    assert ledger.most <= len(names)
    assert ledger.held == []


def test_resident_opens_all_at_once_and_never_again(
    tiny_pair: Path, ledger: Ledger, two_batches: list[Batch]
) -> None:
    engine = OrtEngine(Pair.open(tiny_pair), EngineOptions(residency=Residency.RESIDENT))
    opened = list(ledger.opened)
    assert len(opened) == 6
    list(engine.run(two_batches))
    assert ledger.opened == opened
    engine.close()
    assert ledger.held == []


# Order


def is_layer(arrays: Mapping[str, Any]) -> bool:
    """Whether what is run on these is a layer or all of them: neither the table nor the head pads."""
    return "pad_index" in arrays


PATIENCE = 20.0
"""Seconds after which something that must happen has not; nothing waits that long when all is well."""


def test_stream_opens_the_next_graph_while_one_is_run(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch]
) -> None:
    """The first layer does not return before the second is open."""
    second_is_open = threading.Event()
    open_session, run = Sessions.open, model_runner.run_bound

    def noted(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        session = open_session(self, path, on_host=on_host)
        if path.name == "layer-01.onnx":
            second_is_open.set()
        return session

    def waiting(session: ort.InferenceSession, arrays: Mapping[str, Any], *others: Any) -> None:
        assert not is_layer(arrays) or second_is_open.wait(PATIENCE)
        run(session, arrays, *others)

    monkeypatch.setattr(Sessions, "open", noted)
    monkeypatch.setattr(model_runner, "run_bound", waiting)
    assert len(run_window(Pair.open(tiny_pair), two_batches, Residency.STREAM)) == 2


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the runs of a body or layer had, in order."""
    noted: list[int] = []
    run = model_runner.run_bound

    def noting(
        session: ort.InferenceSession,
        arrays: Mapping[str, Any],
        rows: Mapping[str, ort.OrtValue],
        outputs: Mapping[str, ort.OrtValue],
    ) -> None:
        if is_layer(arrays):
            noted.append(next(iter(rows.values())).shape()[0])
        run(session, arrays, rows, outputs)

    monkeypatch.setattr(model_runner, "run_bound", noting)
    return noted


def test_resident_gives_a_batch_before_it_runs_the_next(
    tiny_pair: Path, ran: list[int], two_batches: list[Batch]
) -> None:
    engine = OrtEngine(Pair.open(tiny_pair), EngineOptions(residency=Residency.RESIDENT))
    results = engine.run(two_batches)
    assert ran == []
    next(results)
    assert ran == [20, 20]  # policy and reference
    next(results)
    assert ran == [20, 20, 16, 16]


@pytest.mark.parametrize(("residency", "graphs"), [(Residency.ALTERNATE, 1), (Residency.STREAM, LAYERS)])
def test_alternate_and_stream_run_the_window_graph_by_graph(
    tiny_pair: Path, ran: list[int], two_batches: list[Batch], residency: Residency, graphs: int
) -> None:
    run_window(Pair.open(tiny_pair), two_batches, residency)
    assert ran == [20, 16] * graphs * 2


# What goes wrong


class Broken(Exception):
    pass


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stepscore-open")]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(("name", "completed"), [("layer-00", 0), ("layer-01", 2), ("head-00", 4)])
def test_unopenable_graph_raises_in_turn_and_leaves_no_thread(
    tiny_pair: Path,
    monkeypatch: pytest.MonkeyPatch,
    ran: list[int],
    two_batches: list[Batch],
    *,
    name: str,
    completed: int,
    ahead: bool,
) -> None:
    open_session = Sessions.open

    def failing(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        if path.stem == name:
            raise Broken(name)
        return open_session(self, path, on_host=on_host)

    monkeypatch.setattr(Sessions, "open", failing)
    with pytest.raises(Broken, match=name):
        run_window(Pair.open(tiny_pair), two_batches, Residency.STREAM, prefetch_next_layer=ahead)
    assert len(ran) == completed  # both batches went through every layer before it
    assert not threads()


def test_a_layer_that_fails_leaves_no_thread(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch]
) -> None:
    def fail(_session: ort.InferenceSession, arrays: Mapping[str, Any], *_others: Any) -> None:
        if is_layer(arrays):
            raise Broken

    monkeypatch.setattr(model_runner, "run_bound", fail)
    with pytest.raises(Broken) as caught:
        run_window(Pair.open(tiny_pair), two_batches, Residency.STREAM)
    assert not threads()  # although the error holds the frames it came through
    del caught

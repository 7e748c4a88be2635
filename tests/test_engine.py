"""Residency: what is open at once and when results come; never which numbers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tests.checkpoints import TINY, write_checkpoint
from tests.conftest import Checkpoints, PairOf
from tests.forms import EXACT_FORMS, INTEGER, MERGED, name_of, needs_exact_integers

from stepscore import engine as engine_module
from stepscore.artifact import Pair
from stepscore.choices import Coding, Precision, Residency
from stepscore.engine import Engine
from stepscore.engines import EngineOptions, Logprobs
from stepscore.manifest import Selftest
from stepscore.plan import SHORT_TOKENS, Batch, pack, plan
from stepscore.provider import Sessions
from stepscore_export import pair as pair_module
from stepscore_export.options import ExportOptions
from stepscore_export.pair import export_pair

# Beyond SHORT_TOKENS, and wide enough that a product is summed in several parts.
SHAPE = replace(TINY, hidden_size=192, intermediate_size=320, head_dim=48, max_position_embeddings=2048)
LAYERS = TINY.num_hidden_layers
INDEPENDENT = [
    ExportOptions(precision, coding=Coding.INDEPENDENT)
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8)
]

PairIn = Callable[[ExportOptions], Pair]


def name_of_any(options: ExportOptions) -> str:
    independent = options.coding is Coding.INDEPENDENT
    return f"{options.precision}-independent" if independent else name_of(options)


every_pair = pytest.mark.parametrize(
    "options",
    [*INDEPENDENT, *EXACT_FORMS, pytest.param(INTEGER, marks=needs_exact_integers)],
    ids=name_of_any,
)


@pytest.fixture(scope="module")
def long_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Two models that take more tokens than the kernel for short sequences."""
    folder = tmp_path_factory.mktemp("long")
    return Checkpoints(
        policy=write_checkpoint(folder / "policy", SHAPE, seed=1, perturb=0.01),
        reference=write_checkpoint(folder / "reference", SHAPE, seed=1),
    )


@pytest.fixture(scope="module")
def pair_in(long_checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> PairIn:
    """Exports at the first request; what is measured on the way is measured by the tests of it."""
    folder = tmp_path_factory.mktemp("long-pairs")
    models = long_checkpoints

    @cache
    def exported(options: ExportOptions) -> Pair:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair_module, "run_selftest", lambda *_: Selftest("cpu", 1, 0.0, 0.0))
            patch.setattr(pair_module, "measure", lambda *_: None)
            output = folder / str(len(list(folder.iterdir())))
            return export_pair(models.policy, models.reference, output, options)

    return exported


def tokens(*lengths: int) -> list[NDArray[np.int64]]:
    random = np.random.default_rng(11)
    return [random.integers(0, TINY.vocab_size, length) for length in lengths]


def short_window() -> list[Batch]:
    """Ragged batches, among them shared beginnings, starts behind the first token, and a single row."""
    first, second, *others = tokens(60, 33, 17, 5, 90, 24)
    sequences = [first, np.concatenate([first[:40], second]), *others, first[:12]]
    starts = [0, 35, 3, 0, 20, 0, 5]
    groups = plan(sequences, starts, max_tokens=100)
    assert len(groups) > 2
    return [*(group.batch for group in groups), pack(tokens(2), [0]), pack(tokens(50), [48])]


def long_window() -> list[Batch]:
    """Batches beyond SHORT_TOKENS beside one that is not."""
    sequences = tokens(1200, 300, 1100, 31)
    groups = plan(sequences, [0, 0, 1000, 0], max_tokens=1500)
    assert [group.batch.pad_index.shape[1] > SHORT_TOKENS for group in groups] == [True, False, True]
    return [group.batch for group in groups]


def run(pair: Pair, window: Sequence[Batch], residency: Residency, **options: Any) -> list[Logprobs]:
    engine = Engine(pair, EngineOptions(residency=residency, **options))
    results = list(engine.run(window))
    engine.close()
    return results


def assert_same_bits(one: Sequence[Logprobs], other: Sequence[Logprobs]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert set(ours) == set(theirs) == {"policy", "reference"}
        for name in ours:
            assert np.isfinite(ours[name]).all()
            np.testing.assert_array_equal(ours[name], theirs[name])


# The same bits


every_window = pytest.mark.parametrize("window", [short_window, long_window])
Window = Callable[[], list[Batch]]


@every_window
@every_pair
def test_body_and_layers_give_the_same_bits_where_sessions_are_opened_alike(
    pair_in: PairIn, monkeypatch: pytest.MonkeyPatch, options: ExportOptions, window: Window
) -> None:
    """The same operators in the same order."""
    monkeypatch.setattr(
        engine_module, "Sessions", lambda *of, lean, cast_late: Sessions(*of, lean=True, cast_late=cast_late)
    )
    body = run(pair_in(options), window(), Residency.ALTERNATE)
    assert_same_bits(run(pair_in(options), window(), Residency.STREAM), body)


@every_window
@every_pair
def test_resident_and_alternate_give_the_same_bits(
    pair_in: PairIn, options: ExportOptions, window: Window
) -> None:
    resident = run(pair_in(options), window(), Residency.RESIDENT)
    assert_same_bits(run(pair_in(options), window(), Residency.ALTERNATE), resident)


@every_window
@every_pair
def test_stream_gives_the_same_but_for_rounding(
    pair_in: PairIn, options: ExportOptions, window: Window
) -> None:
    """ONNX Runtime sums a product in another order where it may pack the matrix, as lean sessions do not."""
    resident = run(pair_in(options), window(), Residency.RESIDENT)
    streamed = run(pair_in(options), window(), Residency.STREAM)
    for ours, theirs in zip(streamed, resident, strict=True):
        assert set(ours) == set(theirs) == {"policy", "reference"}
        assert max(np.abs(ours[name] - theirs[name]).max() for name in ours) < 1e-5


UNPACKED = [*MERGED.values(), pytest.param(INTEGER, marks=needs_exact_integers)]


@every_window
@pytest.mark.parametrize("options", UNPACKED, ids=name_of)
def test_stream_gives_the_same_bits_where_sums_are_exact_or_no_matrix_is_packed(
    pair_in: PairIn, options: ExportOptions, window: Window
) -> None:
    """Integers have no order; base plus difference is not there when a session is opened."""
    resident = run(pair_in(options), window(), Residency.RESIDENT)
    assert_same_bits(run(pair_in(options), window(), Residency.STREAM), resident)


def test_opening_ahead_does_not_change_a_bit(pair_in: PairIn) -> None:
    pair, window = pair_in(INDEPENDENT[0]), short_window()
    in_time = run(pair, window, Residency.STREAM, ahead=False)
    assert_same_bits(run(pair, window, Residency.STREAM), in_time)


@pytest.mark.parametrize("residency", Residency)
def test_a_batch_does_not_know_the_others_of_its_window(pair_in: PairIn, residency: Residency) -> None:
    window = short_window()
    alone = [run(pair_in(INDEPENDENT[0]), [batch], residency)[0] for batch in window]
    assert_same_bits(run(pair_in(INDEPENDENT[0]), window, residency), alone)


@pytest.mark.parametrize("residency", Residency)
def test_an_engine_runs_one_window_after_the_other(pair_in: PairIn, residency: Residency) -> None:
    window = short_window()
    engine = Engine(pair_in(INDEPENDENT[0]), EngineOptions(residency=residency))
    once, again = list(engine.run(window)), list(engine.run(window))
    assert list(engine.run([])) == []
    engine.close()
    assert_same_bits(once, again)


# What is open


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
    """Sessions are counted as they are opened, whoever opens them, and as they are let go of."""
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
def test_stream_has_two_graphs_open_at_most_or_one(
    tiny_pair: Path, ledger: Ledger, two_batches: list[Batch], ahead: bool, most: int
) -> None:
    run(Pair.open(tiny_pair), two_batches, Residency.STREAM, ahead=ahead)
    assert ledger.opened == [*stages("policy"), *stages("reference")]
    assert ledger.most <= most
    assert ledger.held == []
    assert not threads()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows its mapped files on Linux only")
@pytest.mark.parametrize("residency", [Residency.STREAM, Residency.ALTERNATE])
def test_rows_do_not_hold_the_weights_they_were_computed_with(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch], residency: Residency
) -> None:
    """An output that ONNX Runtime allocates keeps its session, and the session maps the weight file."""
    still_mapped, open_session = [], Sessions.open

    def noted(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        still_mapped.append("weights.bin" in Path("/proc/self/maps").read_text())
        return open_session(self, path, on_host=on_host)

    monkeypatch.setattr(Sessions, "open", noted)
    run(Pair.open(tiny_pair), two_batches, residency, ahead=False)
    assert len(still_mapped) > 4
    assert not any(still_mapped)


def test_stream_opens_every_graph_once_a_window(
    coded_pair: Path, ledger: Ledger, two_batches: list[Batch]
) -> None:
    engine = Engine(Pair.open(coded_pair), EngineOptions(residency=Residency.STREAM))
    assert ledger.opened == []
    assert len(list(engine.run(two_batches))) == 2
    assert ledger.opened == stages("both")
    list(engine.run(two_batches))
    assert ledger.opened == [*stages("both"), *stages("both")]


def test_alternate_has_one_model_open(tiny_pair: Path, ledger: Ledger, two_batches: list[Batch]) -> None:
    engine = Engine(Pair.open(tiny_pair), EngineOptions(residency=Residency.ALTERNATE))
    assert ledger.opened == []
    list(engine.run(two_batches))
    names = ("embed", "body", "head")
    assert ledger.opened == [f"{unit}/{name}.onnx" for unit in ("policy", "reference") for name in names]
    assert ledger.most <= len(names)
    assert ledger.held == []


def test_resident_opens_all_at_once_and_never_again(
    tiny_pair: Path, ledger: Ledger, two_batches: list[Batch]
) -> None:
    engine = Engine(Pair.open(tiny_pair), EngineOptions(residency=Residency.RESIDENT))
    opened = list(ledger.opened)
    assert len(opened) == 6
    list(engine.run(two_batches))
    assert ledger.opened == opened
    engine.close()
    assert ledger.held == []


# Order


PATIENCE = 20.0
"""Seconds after which something that must happen has not; nothing waits that long when all is well."""


def test_stream_opens_the_next_graph_while_one_is_run(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch]
) -> None:
    """The first layer does not return before the second is open."""
    second_is_open = threading.Event()
    open_session, run_layers = Sessions.open, engine_module._Unit._layers

    def noted(self: Sessions, path: Path, *, on_host: bool = False) -> ort.InferenceSession:
        session = open_session(self, path, on_host=on_host)
        if path.name == "layer-01.onnx":
            second_is_open.set()
        return session

    def waiting(self: engine_module._Unit, *arguments: Any) -> engine_module.Values:
        assert second_is_open.wait(PATIENCE)
        return run_layers(self, *arguments)

    monkeypatch.setattr(Sessions, "open", noted)
    monkeypatch.setattr(engine_module._Unit, "_layers", waiting)
    assert len(run(Pair.open(tiny_pair), two_batches, Residency.STREAM)) == 2


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the runs of a body or layer had, in order."""
    noted: list[int] = []
    run_layers = engine_module._Unit._layers

    def noting(
        self: engine_module._Unit, session: ort.InferenceSession, batch: Batch, rows: engine_module.Values
    ) -> engine_module.Values:
        noted.append(len(batch.input_ids))
        return run_layers(self, session, batch, rows)

    monkeypatch.setattr(engine_module._Unit, "_layers", noting)
    return noted


def test_resident_gives_a_batch_before_it_runs_the_next(
    tiny_pair: Path, ran: list[int], two_batches: list[Batch]
) -> None:
    engine = Engine(Pair.open(tiny_pair), EngineOptions(residency=Residency.RESIDENT))
    results = engine.run(two_batches)
    assert ran == []
    next(results)
    assert ran == [20, 20]  # policy and reference
    next(results)
    assert ran == [20, 20, 16, 16]


@pytest.mark.parametrize(("residency", "graphs"), [(Residency.ALTERNATE, 1), (Residency.STREAM, LAYERS)])
def test_the_others_take_a_window_through_one_graph_after_the_other(
    tiny_pair: Path, ran: list[int], two_batches: list[Batch], residency: Residency, graphs: int
) -> None:
    run(Pair.open(tiny_pair), two_batches, residency)
    assert ran == [20, 16] * graphs * 2


# What goes wrong


class Broken(Exception):
    pass


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stepscore-open")]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(("name", "completed"), [("layer-00", 0), ("layer-01", 2), ("head-00", 4)])
def test_a_graph_that_cannot_be_opened_raises_at_its_turn_and_leaves_no_thread(
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
        run(Pair.open(tiny_pair), two_batches, Residency.STREAM, ahead=ahead)
    assert len(ran) == completed  # both batches went through every layer before it
    assert not threads()


def test_a_layer_that_fails_leaves_no_thread(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, two_batches: list[Batch]
) -> None:
    def fail(*_: object) -> None:
        raise Broken

    monkeypatch.setattr(engine_module._Unit, "_layers", fail)
    with pytest.raises(Broken) as caught:
        run(Pair.open(tiny_pair), two_batches, Residency.STREAM)
    assert not threads()  # although the error holds the frames it came through
    del caught

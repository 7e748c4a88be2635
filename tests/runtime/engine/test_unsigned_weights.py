"""The graphs that read integer weights as unsigned numbers, for CPUs that multiply signed ones wrongly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from testing.checkpoints import TINY
from testing.forms import every_residency
from testing.pairs import PairOf

from stepscore.artifact.graph_contract import EMBED, graph_files, unsigned_file
from stepscore.artifact.manifest import MANIFEST
from stepscore.artifact.pair import Pair
from stepscore.batching.planner import plan
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort import engine as engine_module
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.provider_checks import needs_unsigned_weights
from stepscore.enums import Activations, Coding, Precision, Residency
from stepscore.errors import ManifestInvalid

NAMES = [name for name in graph_files(TINY.num_hidden_layers, TINY.vocab_size) if name != EMBED]


@pytest.fixture
def pair(pair_of: PairOf) -> Path:
    return pair_of(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)


def graph(pair: Path, name: str) -> onnx.GraphProto:
    return onnx.load(pair / "both" / name, load_external_data=False).graph


def places(graph: onnx.GraphProto) -> dict[tuple[str, str], int]:
    """The type of every tensor of the weight file, by offset and length."""
    found = {}
    for each in graph.initializer:
        place = {entry.key: entry.value for entry in each.external_data}
        if place:
            found[place["offset"], place["length"]] = each.data_type
    return found


def test_every_matmul_graph_has_an_unsigned_twin(pair: Path) -> None:
    on_disk = {path.name for path in (pair / "both").glob("*.onnx")}
    assert on_disk == {EMBED, *NAMES, *map(unsigned_file, NAMES)}
    assert {f"both/{name}" for name in on_disk} < Pair.open(pair).manifest.files.keys()


@pytest.mark.parametrize("activations", [None, Activations.EXACT])
def test_pairs_with_exact_activations_have_no_unsigned_graphs(
    pair_of: PairOf, activations: Activations | None
) -> None:
    coded = {} if activations is None else {"coding": Coding.DIFFERENCE, "activations": activations}
    assert not list(pair_of(Precision.INT8, **coded).rglob("*.u8.onnx"))


@pytest.mark.parametrize("name", NAMES)
def test_pair_without_a_listed_unsigned_graph_is_rejected(pair: Path, name: str, tmp_path: Path) -> None:
    manifest = Pair.open(pair).manifest
    del manifest.files[f"both/{unsigned_file(name)}"]
    (tmp_path / MANIFEST).write_bytes(manifest.encode())
    with pytest.raises(ManifestInvalid, match=f"does not list both/{unsigned_file(name)}"):
        Pair.open(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_unsigned_graph_reads_the_same_bytes_and_flips_sign_bits(pair: Path, name: str) -> None:
    signed, unsigned = graph(pair, name), graph(pair, unsigned_file(name))
    int8, uint8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    retyped = {place: uint8 if kind == int8 else kind for place, kind in places(signed).items()}
    assert places(unsigned) == retyped
    weights = sum(kind == int8 for kind in places(signed).values())
    more = Counter(node.op_type for node in unsigned.node) - Counter(node.op_type for node in signed.node)
    assert more == {"BitwiseXor": weights}


def log_probs(pair: Path, residency: Residency, *, prefetch_next_layer: bool = True) -> NDArray[np.float32]:
    random = np.random.default_rng(3)
    sequences = [random.integers(0, TINY.vocab_size, length) for length in (60, 33, 2, 90)]
    batches = [group.batch for group in plan(sequences, [0] * 4, max_tokens=100)]
    engine = OrtEngine(
        Pair.open(pair), EngineOptions(residency=residency, prefetch_next_layer=prefetch_next_layer)
    )
    found = [values for of_batch in engine.run(batches) for values in of_batch.values()]
    engine.close()
    return np.concatenate(found)


@pytest.mark.skipif(needs_unsigned_weights(), reason="products with signed weights saturate on this CPU")
@every_residency
def test_unsigned_graphs_give_the_same_bits(
    pair: Path, monkeypatch: pytest.MonkeyPatch, residency: Residency
) -> None:
    signed = log_probs(pair, residency)
    monkeypatch.setattr(engine_module, "needs_unsigned_weights", lambda: True)
    assert np.array_equal(log_probs(pair, residency), signed)


@pytest.mark.parametrize("ahead", [True, False])
def test_residencies_agree_with_unsigned_weights(
    pair: Path, monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    """Packed or not, folded or not: integers have no order."""
    monkeypatch.setattr(engine_module, "needs_unsigned_weights", lambda: True)
    resident = log_probs(pair, Residency.RESIDENT)
    assert np.array_equal(log_probs(pair, Residency.STREAM, prefetch_next_layer=ahead), resident)

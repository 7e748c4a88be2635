"""The table of tensors: what it names is checked before any address of it reaches ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.cuda_forms import CUDA_FORMS, every_cuda_form
from testing.pairs import PairOf

from stepscore.artifact.graph_contract import WEIGHTS
from stepscore.artifact.pair import Pair
from stepscore.artifact.tensor_table import TENSORS, TensorEntry, TensorTable, entries
from stepscore.errors import ModelInvalid

Table = dict[str, TensorEntry]


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    return Pair.open(pair_of.form(CUDA_FORMS["int4-int4"][0]))


def table(pair: Pair) -> Table:
    return msgspec.json.decode((pair.path / "both" / TENSORS).read_bytes(), type=Table)


def read(pair: Pair, changed: Table, folder: Path) -> None:
    """Read the table with these entries, and all stages and vectors of it."""
    (folder / "both").mkdir(exist_ok=True)
    (folder / "both" / TENSORS).write_bytes(msgspec.json.encode(changed))
    (unit,) = pair.manifest.units
    found = TensorTable.read(folder, pair.manifest, unit)
    found.stages()
    for model in unit.models:
        found.shared(model)
        for layer in range(pair.manifest.architecture.num_hidden_layers):
            found.vectors(layer, model)


@every_cuda_form
def test_every_tensor_of_a_stage_lies_in_it_and_they_do_not_overlap(pair_of: PairOf, form: str) -> None:
    opened = Pair.open(pair_of.form(CUDA_FORMS[form][0]))
    for unit in opened.manifest.units:
        for stage in TensorTable.read(opened.path, opened.manifest, unit).stages():
            of_stage = [each for matrix in stage.matrices.values() for each in entries(matrix.form)]
            ends = sorted((each.offset, each.offset + each.num_bytes) for each in of_stage)
            assert all(end <= start for (_, end), (start, _) in pairwise(ends))
            assert stage.extent.offset <= ends[0][0]
            assert ends[-1][1] <= stage.extent.offset + stage.extent.size


def moved(entry: TensorEntry) -> TensorEntry:
    return msgspec.structs.replace(entry, offset=entry.offset + (1 << 20))


def negative(entry: TensorEntry) -> TensorEntry:
    return msgspec.structs.replace(entry, offset=-4096)


def longer(entry: TensorEntry) -> TensorEntry:
    return msgspec.structs.replace(entry, shape=(entry.shape[0] + 1, *entry.shape[1:]))


def of_another_type(entry: TensorEntry) -> TensorEntry:
    return msgspec.structs.replace(entry, type="float32" if entry.type != "float32" else "int8")


@pytest.mark.parametrize("damage", [moved, negative, longer, of_another_type])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.up.base.codes",
        "layers.1.down.base.zeros",
        "layers.1.qkv.difference.scales",
        "head.0.base.codes",
        "layers.0.input_norm.policy",
        "norm.reference",
    ],
)
def test_a_damaged_entry_is_refused(
    pair: Pair, tmp_path: Path, name: str, damage: Callable[[TensorEntry], TensorEntry]
) -> None:
    tensors = table(pair)
    with pytest.raises(ModelInvalid, match=rf"both/{TENSORS} "):
        read(pair, tensors | {name: damage(tensors[name])}, tmp_path)


def test_a_missing_entry_is_named(pair: Pair, tmp_path: Path) -> None:
    tensors = table(pair)
    del tensors["layers.1.up.difference.scales"]
    with pytest.raises(ModelInvalid, match=r"does not have 'layers\.1\.up\.difference\.scales'"):
        read(pair, tensors, tmp_path)


def test_what_is_not_a_table_is_refused(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / TENSORS).write_text('{"a": 1}')
    with pytest.raises(ModelInvalid, match="cannot be read"):
        TensorTable.read(tmp_path, pair.manifest, pair.manifest.units[0])


ENTRIES = st.builds(
    TensorEntry,
    st.sampled_from(["int8", "int4", "float16", "float32", "bfloat16", "uint8", "int32", "uint16"]),
    st.lists(st.integers(-3, 1 << 33), max_size=3).map(tuple),
    st.integers(-(1 << 40), 1 << 40),
)


@given(ENTRIES, st.data())
def test_no_entry_leads_outside_the_weight_file(
    tmp_path_factory: pytest.TempPathFactory, pair: Pair, entry: TensorEntry, data: st.DataObject
) -> None:
    """Whatever an entry says: it is refused, or its bytes are within the file."""
    tensors = table(pair)
    name = data.draw(st.sampled_from(sorted(tensors)))
    size = pair.manifest.files[f"both/{WEIGHTS}"].size
    try:
        read(pair, tensors | {name: entry}, tmp_path_factory.getbasetemp())
    except ModelInvalid:
        return
    assert 0 <= entry.offset <= entry.offset + entry.num_bytes <= size

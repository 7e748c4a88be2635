"""Which bytes of weights.bin a graph reads: what an export writes of it, and what is refused."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path

import pytest
from testing.checkpoints import tied, write_checkpoint
from testing.forms import every_export, every_form, every_precision
from testing.graphs import NAMES, external, load
from testing.pair_files import rewrite
from testing.pairs import PairOf, export_unmeasured

from stepscore.artifact.manifest import MANIFEST, Unit
from stepscore.artifact.pair import Pair
from stepscore.enums import Coding, Precision, Target
from stepscore.errors import ManifestInvalid
from stepscore_export.options import ExportOptions

NO_GRAPHS_OWN = ("norm", "rotary")  # tensors that several graphs read, and nobody's extent covers
Place = tuple[int, int]
"""First byte and end."""


def units(pair: Path) -> tuple[Unit, ...]:
    return Pair.open(pair).manifest.units


def places(unit: Unit) -> dict[str, Place]:
    return {name: (extent.offset, extent.offset + extent.size) for name, extent in unit.extents.items()}


def assert_extents_fit(pair: Path) -> None:
    for unit in units(pair):
        found = places(unit)
        assert set(found) == set(NAMES)
        size = (pair / unit.folder / "weights.bin").stat().st_size
        assert all(0 <= start < end <= size for start, end in found.values())
        layers = sorted(place for name, place in found.items() if name.startswith("layer"))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(layers))
        assert found["body.onnx"] == (layers[0][0], layers[-1][1])


def assert_extents_hold_what_is_read(pair: Path) -> None:
    for unit in units(pair):
        for name, place in places(unit).items():
            read = [
                (int(where["offset"]), int(where["offset"]) + int(where["length"]))
                for tensor, where in external(load(pair, name, unit.folder)).items()
                if not tensor.startswith(NO_GRAPHS_OWN)
            ]
            assert place == (min(start for start, _ in read), max(end for _, end in read))


@every_export
def test_layer_extents_are_disjoint_and_the_body_spans_them(
    pair_of: PairOf, precision: Precision, target: Target
) -> None:
    assert_extents_fit(pair_of(precision, target))


@every_form
def test_layer_extents_of_a_coded_pair_are_disjoint(pair_of: PairOf, form: ExportOptions) -> None:
    assert_extents_fit(pair_of.form(form))


@every_precision
def test_extent_spans_the_tensors_a_graph_reads(pair_of: PairOf, precision: Precision) -> None:
    assert_extents_hold_what_is_read(pair_of(precision))


@every_form
def test_extent_of_a_coded_pair_spans_the_tensors_a_graph_reads(pair_of: PairOf, form: ExportOptions) -> None:
    assert_extents_hold_what_is_read(pair_of.form(form))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_tied_head_reads_the_bytes_of_the_embedding(tmp_path: Path, precision: Precision) -> None:
    folder = write_checkpoint(tmp_path / "model", tied(), seed=1)
    options = ExportOptions(precision, coding=Coding.INDEPENDENT)
    pair = export_unmeasured(folder, folder, tmp_path / "pair", options).path
    assert_extents_fit(pair)
    assert_extents_hold_what_is_read(pair)
    assert all(unit.extents["head.onnx"] == unit.extents["embed.onnx"] for unit in units(pair))


# What is refused


@pytest.mark.parametrize("unit", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_graph_without_extent_is_rejected(pair_copy: Path, name: str, unit: int) -> None:
    rewrite(pair_copy, lambda manifest: manifest["units"][unit]["extents"].pop(name))
    with pytest.raises(ManifestInvalid, match=f"no valid extent of weights.bin for .*/{name}"):
        Pair.open(pair_copy)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "extent",
    [
        {"offset": -1, "size": 10},
        {"offset": -4096, "size": 8192},
        {"offset": 0, "size": 0},
        {"offset": 8192, "size": -4096},
        {"offset": 0, "size": 10**9},
        {"offset": 10**9, "size": 1},
        {"offset": 0, "size": 2**63},
        {"offset": 2**64, "size": -(2**64)},
    ],
)
def test_an_extent_outside_the_weight_file_is_refused(
    pair_copy: Path, name: str, extent: dict[str, int]
) -> None:
    rewrite(pair_copy, lambda manifest: manifest["units"][0]["extents"].update({name: extent}))
    with pytest.raises(ManifestInvalid, match=MANIFEST):
        Pair.open(pair_copy)


@pytest.mark.parametrize(("more", "is_refused"), [(0, False), (1, True)])
def test_an_extent_may_end_where_the_weight_file_ends(
    pair_copy: Path, more: int, *, is_refused: bool
) -> None:
    size = (pair_copy / "policy" / "weights.bin").stat().st_size
    extent = {"offset": size - 7, "size": 7 + more}
    rewrite(pair_copy, lambda manifest: manifest["units"][0]["extents"].update({"head.onnx": extent}))
    with pytest.raises(ManifestInvalid, match=r"head\.onnx") if is_refused else nullcontext():
        Pair.open(pair_copy)

"""A pair on disk: whatever is damaged is named, whatever is intact loads, and nothing else ever happens."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.checkpoints import TINY
from testing.pair_files import open_and_verify, rewrite
from testing.pairs import PairOf

from stepscore.artifact.graph_contract import graph_files
from stepscore.artifact.manifest import MANIFEST, Manifest
from stepscore.artifact.pair import Pair
from stepscore.enums import Coding, Precision, Products
from stepscore.errors import (
    ArtifactError,
    IntegrityMismatch,
    ManifestInvalid,
    NotFound,
    VersionUnsupported,
)
from stepscore.scorer import Scorer

FILES = [
    "prefix.npz",
    "tokenizer.json",
    *(
        f"{model}/{name}"
        for model in ("policy", "reference")
        for name in ("weights.bin", *graph_files(TINY.num_hidden_layers, TINY.vocab_size))
    ),
]
RECORD = {"problem": "1 + 1?", "steps": ["1 + 1 = 2."]}


def test_a_pair_is_exactly_these_files(tiny_pair: Path) -> None:
    assert sorted(open_and_verify(tiny_pair).manifest.files) == sorted(FILES)
    found = [path.relative_to(tiny_pair).as_posix() for path in tiny_pair.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([*FILES, MANIFEST])


def test_a_coded_pair_has_one_folder_for_both_models(pair_of: PairOf) -> None:
    pair = pair_of(Precision.INT8, coding=Coding.DIFFERENCE, products=Products.MERGED)
    names = ("weights.bin", *graph_files(TINY.num_hidden_layers, TINY.vocab_size))
    assert sorted(open_and_verify(pair).manifest.files) == sorted(
        ["prefix.npz", "tokenizer.json", *(f"both/{name}" for name in names)]
    )


# Faults, each on each file


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def become_a_symlink(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS = [
    truncate,
    empty,
    lengthen,
    flip_one_bit,
    Path.unlink,
    become_a_symlink,
    become_a_folder,
    become_a_fifo,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(pair_copy: Path, name: str, fault: Callable[[Path], None]) -> None:
    fault(pair_copy / name)
    with pytest.raises(IntegrityMismatch, match=name):
        open_and_verify(pair_copy)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_manifest_is_named(pair_copy: Path, fault: Callable[[Path], None]) -> None:
    fault(pair_copy / MANIFEST)
    with pytest.raises(ManifestInvalid, match=MANIFEST):
        open_and_verify(pair_copy)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("weights.bin")])
def test_a_damaged_small_file_is_found_at_open(pair_copy: Path, name: str) -> None:
    flip_one_bit(pair_copy / name)
    with pytest.raises(IntegrityMismatch, match=name):
        Pair.open(pair_copy)


@pytest.mark.parametrize("fault", [truncate, lengthen, empty])
def test_a_weight_file_of_another_size_is_found_at_open(
    pair_copy: Path, fault: Callable[[Path], None]
) -> None:
    fault(pair_copy / "policy" / "weights.bin")
    with pytest.raises(IntegrityMismatch, match=r"policy/weights\.bin"):
        Pair.open(pair_copy)


def test_a_unit_behind_a_symlink_is_refused(pair_copy: Path, tmp_path: Path) -> None:
    (pair_copy / "policy").rename(tmp_path / "elsewhere")
    (pair_copy / "policy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityMismatch, match="policy/"):
        Pair.open(pair_copy)


def test_a_unit_that_is_a_file_is_refused(pair_copy: Path) -> None:
    shutil.rmtree(pair_copy / "reference")
    (pair_copy / "reference").write_text("not a folder")
    with pytest.raises(IntegrityMismatch, match="reference/"):
        Pair.open(pair_copy)


# What is no pair


def test_no_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        Pair.open(tmp_path / "nowhere")


def test_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match="not a folder"):
        Pair.open(tmp_path / "file")


def test_a_folder_without_a_manifest_is_not_a_pair(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match=r"manifest\.json is missing"):
        Pair.open(tmp_path)


# The manifest's content


def test_a_rewritten_manifest_is_read(pair_copy: Path) -> None:
    """The control of the tests below: what they refuse is their change, not the rewriting."""
    rewrite(pair_copy, lambda manifest: manifest.update(beta=0.05))
    assert open_and_verify(pair_copy).manifest.beta == 0.05


@pytest.mark.parametrize("version", [0, 1, 2, 3, 99])
def test_another_schema_version_is_refused(pair_copy: Path, version: int) -> None:
    rewrite(pair_copy, lambda manifest: manifest.update(schema_version=version, future="field"))
    with pytest.raises(VersionUnsupported, match=f"schema version {version}"):
        Pair.open(pair_copy)


@pytest.mark.parametrize(
    "where",
    [
        (),
        ("architecture",),
        ("template",),
        ("policy",),
        ("files", FILES[1]),
        ("units", 0),
        ("units", 1, "extents", "head.onnx"),
    ],
)
def test_an_unknown_field_is_refused(pair_copy: Path, where: tuple[str | int, ...]) -> None:
    def add(manifest: Any) -> None:
        for key in where:
            manifest = manifest[key]
        manifest["surprise"] = 1

    rewrite(pair_copy, add)
    with pytest.raises(ManifestInvalid, match="surprise"):
        Pair.open(pair_copy)


@pytest.mark.parametrize("field", [name for name in Manifest.__struct_fields__ if name != "checksum"])
def test_a_missing_field_is_refused(pair_copy: Path, field: str) -> None:
    rewrite(pair_copy, lambda manifest: manifest.pop(field))
    with pytest.raises(ManifestInvalid, match=field):
        Pair.open(pair_copy)


@pytest.mark.parametrize("checksum", ["", "0" * 64, "1"])
def test_a_checksum_that_does_not_fit_is_refused(pair_copy: Path, checksum: str) -> None:
    manifest = json.loads((pair_copy / MANIFEST).read_bytes()) | {"checksum": checksum}
    (pair_copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ManifestInvalid, match="its checksum"):
        Pair.open(pair_copy)


@pytest.mark.parametrize(
    "name", ["../x", "policy/../../x", "/etc/passwd", "policy\\x", "a\0b", "", ".", "..", "x/.."]
)
def test_a_name_that_leaves_the_folder_is_refused(pair_copy: Path, name: str) -> None:
    rewrite(pair_copy, lambda manifest: manifest["files"].update({name: manifest["files"][FILES[0]]}))
    with pytest.raises(ManifestInvalid, match="outside the pair"):
        Pair.open(pair_copy)


@pytest.mark.parametrize("folder", ["..", ".", "", "/tmp", "policy/..", "a/b"])
def test_a_unit_that_leaves_the_folder_is_refused(pair_copy: Path, folder: str) -> None:
    rewrite(pair_copy, lambda manifest: manifest["units"][0].update(folder=folder))
    with pytest.raises(ManifestInvalid, match="outside the pair"):
        Pair.open(pair_copy)


@pytest.mark.parametrize(
    "models", [[["policy"], ["policy"]], [["policy"]], [["policy", "reference"], ["reference"]], [[], []]]
)
def test_units_hold_each_model_once(pair_copy: Path, models: list[list[str]]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["units"] = [manifest["units"][0] | {"models": names} for names in models]

    rewrite(pair_copy, change)
    with pytest.raises(ManifestInvalid, match="one policy and one reference"):
        Pair.open(pair_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_listed_is_missed(pair_copy: Path, name: str) -> None:
    rewrite(pair_copy, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(ManifestInvalid, match=f"does not list {name}"):
        Pair.open(pair_copy)


@pytest.mark.parametrize("layers", [0, -1, 10**6, 10**15])
def test_a_number_of_layers_that_cannot_be_is_refused(pair_copy: Path, layers: int) -> None:
    rewrite(pair_copy, lambda manifest: manifest["architecture"].update(num_hidden_layers=layers))
    with pytest.raises(ManifestInvalid):
        Pair.open(pair_copy)


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"x":' + b"[" * 10**6])
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(ManifestInvalid, match=MANIFEST):
        Pair.open(tmp_path)


@given(damage=st.lists(st.tuples(st.integers(0, 10**9), st.binary(max_size=3)), min_size=1, max_size=4))
def test_any_damage_to_the_manifest_is_an_artifact_error(
    tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    """Bytes cut out, put in, or replaced; the files it names are never read."""
    original = (tiny_pair / MANIFEST).read_bytes()
    damaged = original
    for place, replacement in damage:
        at = place % len(damaged)
        damaged = damaged[:at] + replacement + damaged[at + 1 :]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / MANIFEST).write_bytes(damaged)
    with pytest.raises(ArtifactError):
        Pair.open(folder)


def test_the_manifest_reads_back_as_it_was_written(tiny_pair: Path) -> None:
    data = (tiny_pair / MANIFEST).read_bytes()
    assert msgspec.json.decode(data, type=Manifest).encode() == data


# Copies


def test_a_copied_folder_scores_alike(tiny_pair: Path, pair_copy: Path) -> None:
    assert score(pair_copy) == score(tiny_pair)


def test_a_pair_out_of_a_tar_scores_alike(tiny_pair: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pair.tar", "w") as tar:
        tar.add(tiny_pair, "pair")
    with tarfile.open(tmp_path / "pair.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    assert score(tmp_path / "pair") == score(tiny_pair)


def test_a_read_only_folder_scores_alike(tiny_pair: Path, pair_copy: Path) -> None:
    """Root may write anyway; what counts then is that nothing was written."""
    paths = [pair_copy, *pair_copy.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert score(pair_copy) == score(tiny_pair)
    assert {path: path.stat().st_mtime_ns for path in [pair_copy, *pair_copy.rglob("*")]} == before
    for path in paths:
        path.chmod(0o755)


def test_a_pair_behind_a_symlink_scores_alike(tiny_pair: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_pair)
    assert score(tmp_path / "link") == score(tiny_pair)


def score(pair: Path) -> list[float]:
    with Scorer.load(pair, threads=1) as scorer:
        (result,) = scorer.score([RECORD])
    return result.step_rewards

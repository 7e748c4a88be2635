"""A manifest says what its models are stored as, and lists what that format needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from tests.runtime.artifact.test_pair import open_and_verify, rewrite

from stepscore.artifact.manifest import MANIFEST, FileEntry, Unit
from stepscore.artifact.pair import Pair
from stepscore.enums import Format, Precision
from stepscore.errors import ManifestInvalid


@pytest.fixture
def torch_pair(tiny_pair: Path, tmp_path: Path) -> Path:
    """A pair of the format bitsandbytes whose models nobody loads; the weights of one are in two files."""
    manifest = Pair.open(tiny_pair).manifest
    contents = {"tokenizer.json": (tiny_pair / "tokenizer.json").read_bytes()} | {
        name: name.encode()
        for name in (
            *("policy/config.json", "policy/model.safetensors", "reference/config.json"),
            *("reference/model-1.safetensors", "reference/model-2.safetensors"),
        )
    }
    for name, data in contents.items():
        (tmp_path / "torch" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "torch" / name).write_bytes(data)
    stored = msgspec.structs.replace(
        manifest,
        format=Format.BITSANDBYTES,
        precision=Precision.NF4,
        target=None,
        units=tuple(Unit(unit.folder, unit.models, {}) for unit in manifest.units),
        files={
            name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()
        },
    )
    (tmp_path / "torch" / MANIFEST).write_bytes(stored.encode())
    return tmp_path / "torch"


def test_a_pair_of_transformers_folders_opens(torch_pair: Path) -> None:
    manifest = open_and_verify(torch_pair).manifest
    assert (manifest.format, manifest.precision, manifest.target) == ("bitsandbytes", "nf4", None)


@pytest.mark.parametrize("name", ["tokenizer.json", "policy/config.json", "reference/config.json"])
def test_a_file_of_transformers_that_is_not_listed_is_missed(torch_pair: Path, name: str) -> None:
    rewrite(torch_pair, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(ManifestInvalid, match=f"does not list {name}"):
        Pair.open(torch_pair)


def test_a_transformers_folder_without_weights_is_refused(torch_pair: Path) -> None:
    rewrite(torch_pair, lambda manifest: manifest["files"].pop("policy/model.safetensors"))
    with pytest.raises(ManifestInvalid, match=r"not list separate weights of policy$"):
        Pair.open(torch_pair)


def test_one_transformers_folder_is_not_both_models(torch_pair: Path) -> None:
    both = {"folder": "policy", "models": ["policy", "reference"], "extents": {}}
    rewrite(torch_pair, lambda manifest: manifest.update(units=[both]))
    with pytest.raises(ManifestInvalid, match="not list separate weights of policy and reference"):
        Pair.open(torch_pair)


@pytest.mark.parametrize(
    ("of_format", "precision"),
    [("onnx", "nf4"), ("onnx", "fp4"), ("bitsandbytes", "int4"), ("bitsandbytes", "fp32")],
)
def test_a_precision_of_another_format_is_refused(torch_pair: Path, of_format: str, precision: str) -> None:
    rewrite(torch_pair, lambda manifest: manifest.update(format=of_format, precision=precision))
    with pytest.raises(ManifestInvalid, match=f"{of_format} does not support precision {precision}"):
        Pair.open(torch_pair)


def test_graphs_without_a_target_are_refused(pair_copy: Path) -> None:
    rewrite(pair_copy, lambda manifest: manifest.update(target=None))
    with pytest.raises(ManifestInvalid, match="does not name the target"):
        Pair.open(pair_copy)

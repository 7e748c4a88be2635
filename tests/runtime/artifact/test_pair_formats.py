"""A manifest says what its models are stored as, and lists what that format needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.pair_files import open_and_verify, rewrite

from stepscore.artifact.pair import Pair
from stepscore.errors import ManifestInvalid


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

"""A checkpoint is read as transformers reads it, whatever its layout, in bounded memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.checkpoints import TINY, edit_json, edit_tensors, tied, weights, write_checkpoint

from stepscore.artifact.manifest import Source
from stepscore.errors import CheckpointUnsafe, ExportError, NotFound
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import tensor_shapes
from stepscore_export.families.rope import DefaultRope

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    with Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("opened") / "model")) as checkpoint:
        yield checkpoint


def everything(folder: Path) -> dict[str, np.ndarray]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.rows(name) for name in tensor_shapes(checkpoint.config)}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


@pytest.mark.parametrize("layout", [4, 5])
def test_the_configuration_is_read_in_both_layouts(tmp_path: Path, layout: Any) -> None:
    shape = replace(TINY, rope=DefaultRope(1e6), head_dim=32)
    with Checkpoint.open(write_checkpoint(tmp_path, shape, layout=layout)) as checkpoint:
        assert checkpoint.config == shape


def test_omitted_config_keys_take_transformers_defaults(folder: Path) -> None:
    left_out = ("head_dim", "rms_norm_eps", "max_position_embeddings", "rope_theta", "hidden_act")
    edit_json(folder / "config.json", **dict.fromkeys(left_out, ...))
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config == replace(TINY, max_position_embeddings=32768)


def test_unused_sliding_window_is_accepted(folder: Path) -> None:
    edit_json(folder / "config.json", sliding_window=16, max_window_layers=0, use_sliding_window=False)
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config == TINY


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_every_stored_number_is_read_exactly(tmp_path: Path, dtype: Any, stored: Any) -> None:
    expected = {name: array.astype(stored).astype(np.float32) for name, array in weights(TINY).items()}
    read = everything(write_checkpoint(tmp_path, dtype=dtype))
    assert_same(read, expected)
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("shards", [2, 3, 27])
def test_shards_make_no_difference(tmp_path: Path, folder: Path, shards: int) -> None:
    assert_same(everything(write_checkpoint(tmp_path / "sharded", shards=shards)), everything(folder))


def test_names_without_prefix_are_read_if_there_is_a_head(tmp_path: Path, folder: Path) -> None:
    assert_same(everything(write_checkpoint(tmp_path / "bare", prefix="")), everything(folder))


def test_a_tied_checkpoint_has_no_head_of_its_own(tmp_path: Path) -> None:
    with (
        Checkpoint.open(write_checkpoint(tmp_path / "tied", tied())) as checkpoint,
        pytest.raises(KeyError, match=HEAD),
    ):
        checkpoint.rows(HEAD)


def test_a_tied_checkpoint_may_carry_a_copy_of_its_embedding(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tied())
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update({HEAD: all_[EMBEDDING].copy()}))
    assert_same(everything(folder), weights(tied()))
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.parameters() == sum(array.size for array in weights(tied()).values())


def test_rotary_frequencies_are_ignored(folder: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    edit_tensors(folder / "model.safetensors", lambda all_: all_.update(buffer))
    assert_same(everything(folder), weights(TINY))


@given(
    name=st.sampled_from([EMBEDDING, NORM]),
    start=st.integers(-400, 400),
    stop=st.none() | st.integers(-400, 400),
)
def test_rows_are_a_slice(opened: Checkpoint, name: str, start: int, stop: int | None) -> None:
    np.testing.assert_array_equal(opened.rows(name, start, stop), weights(TINY)[name][start:stop])


def test_rows_are_a_copy(opened: Checkpoint) -> None:
    opened.rows(NORM)[:] = 0
    assert opened.rows(NORM).all()


def test_sizes_count_what_the_model_uses(tmp_path: Path) -> None:
    total = sum(array.size for array in weights(TINY).values())
    with Checkpoint.open(write_checkpoint(tmp_path, dtype="bfloat16")) as checkpoint:
        assert (checkpoint.parameters(), checkpoint.num_bytes()) == (total, 2 * total)
        assert checkpoint.shape(HEAD) == (TINY.vocab_size, TINY.hidden_size)


@pytest.mark.slow
def test_row_reads_take_constant_memory(tmp_path: Path) -> None:
    shape = replace(tied(), vocab_size=51200, hidden_size=1024, num_hidden_layers=1, head_dim=2)
    write_checkpoint(tmp_path, shape)
    assert (tmp_path / "model.safetensors").stat().st_size > 200e6
    code = f"""
import os
from pathlib import Path
from stepscore_export.checkpoint.checkpoint import Checkpoint
with Checkpoint.open({str(tmp_path)!r}) as checkpoint:
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    idle, peak = resident(), 0
    for start in range(0, {shape.vocab_size}, 1024):
        block = checkpoint.rows({EMBEDDING!r}, start, start + 1024)
        peak = max(peak, resident())
print(peak - idle)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 32e6  # blocks of 4 MB


@pytest.mark.torch
def test_transformers_reads_the_same_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path, tied(), shards=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != HEAD}
    assert_same(everything(folder), theirs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_damaged_header_is_refused_or_harmless(folder: Path, position: int, value: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
    try:
        with suppress(ExportError):
            assert_same(everything(folder), weights(TINY))
    finally:
        path.write_bytes(whole)


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert_same(everything(folder), weights(TINY))


# Where it comes from


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache without a network; links as the hub's client makes them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    blobs = write_checkpoint(repository / "blobs", layout=5)
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_a_folder_goes_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for source in (folder, str(folder), Path(), "."):
        with Checkpoint.open(source) as checkpoint:
            assert checkpoint.source == Source("model", None)


@pytest.mark.parametrize("revision", ["", "@main", "@" + "0123456789" * 4])
def test_a_repository_goes_by_its_id_and_commit(cache: Path, revision: str) -> None:
    with Checkpoint.open("org/name" + revision) as checkpoint:
        assert checkpoint.source == Source("org/name", cache.name)
        np.testing.assert_array_equal(checkpoint.rows(HEAD), weights(TINY)[HEAD])


def test_a_link_that_leaves_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    shutil.move(cache.parents[1] / "blobs" / "config.json", tmp_path / "config.json")
    (cache / "config.json").unlink()
    (cache / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointUnsafe, match=r"config.json is a link that leaves"):
        Checkpoint.open("org/name")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "source", ["org/other", "org/name@v2", "no folder", "/no/such/folder", "a/b/c", "a@b@c"]
)
def test_unknown_checkpoint_is_not_found(source: str) -> None:
    with pytest.raises(NotFound) as caught:
        Checkpoint.open(source)
    assert caught.value.hint


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint folder"):
        Checkpoint.open(tmp_path / "missing")

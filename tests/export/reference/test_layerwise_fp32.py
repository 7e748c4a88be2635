"""The checkpoints run exactly, layer by layer: right numbers, little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from testing.checkpoints import ODD, TINY, DType, edit_tensors, tied, write_checkpoint
from testing.sequences import Tokens, ragged

from stepscore.errors import CheckpointCorrupt
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import EMBEDDING, DecoderConfig, tensor_shapes
from stepscore_export.reference import layerwise_fp32 as exact
from stepscore_export.reference import numpy_forward as oracle
from stepscore_export.reference.layerwise_fp32 import ExactModel, fp32_logprobs
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

MANY_COLUMNS = replace(ODD, vocab_size=1001)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    with Checkpoint.open(write_checkpoint(tmp_path / "model", seed=1, scale=1.5)) as opened:
        yield opened


def distance(ours: list[NDArray[np.float64]], checkpoint: Checkpoint, of: list[Tokens]) -> float:
    """The largest difference from the oracle's log-probs, nats."""
    truth = [hidden_and_logprobs(checkpoint, tokens)[1] for tokens in of]
    return max(float(np.abs(mine - true).max()) for mine, true in zip(ours, truth, strict=True))


def test_the_oracle_does_not_depend_on_how_many_blocks_it_reads(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are multiplied in two threads and read in one: a file has one position."""
    (tokens,) = ragged(lengths=(90,))
    at_once = hidden_and_logprobs(checkpoint, tokens)
    monkeypatch.setattr(oracle, "BLOCK_ELEMENTS", 2 * TINY.hidden_size)
    for ours, theirs in zip(hidden_and_logprobs(checkpoint, tokens), at_once, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (TINY, "float32"),
        (TINY, "bfloat16"),
        (TINY, "float16"),
        (tied(), "bfloat16"),
        (MANY_COLUMNS, "float32"),
    ],
    ids=["fp32", "bf16", "fp16", "tied bf16", "odd"],
)
def test_layerwise_fp32_is_within_1e_4_nats_of_float64(
    tmp_path: Path, shape: DecoderConfig, dtype: DType
) -> None:
    folder = write_checkpoint(tmp_path / "model", shape, seed=1, dtype=dtype, scale=1.5)
    with Checkpoint.open(folder) as checkpoint:
        ours = ExactModel(checkpoint, ragged(shape)).logprobs()
        assert [logprobs.dtype for logprobs in ours] == [np.float64] * len(ours)
        assert distance(ours, checkpoint, ragged(shape)) <= 1e-4


def test_a_layer_of_two_storage_types_is_exact_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1, dtype="float32", scale=1.5)
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder / "model.safetensors", lambda t: t.update({name: t[name].astype(np.float16)}))
    with Checkpoint.open(folder) as checkpoint:
        assert distance(ExactModel(checkpoint, ragged()).logprobs(), checkpoint, ragged()) <= 1e-4


def test_small_batches_and_head_blocks_change_nothing_but_rounding(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ExactModel(checkpoint, ragged()).logprobs()
    monkeypatch.setattr(exact, "BATCH_ROWS", 64)
    monkeypatch.setattr(exact, "BLOCK_ELEMENTS", 7 * TINY.hidden_size)
    cut = ExactModel(checkpoint, ragged()).logprobs()
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_both_models_come_out_as_policy_and_reference(tmp_path: Path) -> None:
    folders = [
        write_checkpoint(tmp_path / name, seed=seed) for name, seed in (("policy", 1), ("reference", 2))
    ]
    with Checkpoint.open(folders[0]) as policy, Checkpoint.open(folders[1]) as reference:
        ours, theirs = zip(*fp32_logprobs(policy, reference, ragged()), strict=True)
        assert distance(list(ours), policy, ragged()) <= 1e-4
        assert distance(list(theirs), reference, ragged()) <= 1e-4


@pytest.mark.parametrize("shape", [TINY, tied()], ids=["untied", "tied"])
def test_progress_hears_of_the_matrices_of_layers_and_head(tmp_path: Path, shape: DecoderConfig) -> None:
    counts: list[int] = []
    with Checkpoint.open(write_checkpoint(tmp_path / "model", shape)) as checkpoint:
        ExactModel(checkpoint, ragged(), counts.append).logprobs()
    shapes = [size for name, size in tensor_shapes(TINY).items() if name != EMBEDDING]
    assert sum(counts) == sum(math.prod(size) for size in shapes if len(size) == 2)


# One layer at a time


def test_there_is_no_layer_after_the_last(checkpoint: Checkpoint) -> None:
    model = ExactModel(checkpoint, ragged())
    model.run_next_layer()
    model.run_next_layer()
    with pytest.raises(IndexError, match="all 2 layers"):
        model.run_next_layer()
    assert distance(model.logprobs(), checkpoint, ragged()) <= 1e-4


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_model_is_of_no_use_after_a_layer_that_failed(
    checkpoint: Checkpoint, failure: type[BaseException]
) -> None:
    """Its batches would be in different layers, and the numbers wrong."""
    model = ExactModel(checkpoint, ragged())

    def fail(*_: object) -> None:
        raise failure("here")

    with pytest.raises(failure, match="here"):
        model.run_next_layer(fail)
    for use in (model.run_next_layer, model.logprobs, model.hidden):
        with pytest.raises(RuntimeError, match="layer 0 failed"):
            use()


def test_a_truncated_checkpoint_is_named(checkpoint: Checkpoint) -> None:
    model = ExactModel(checkpoint, ragged())
    weights = checkpoint.folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(CheckpointCorrupt, match="truncated while it was read"):
        model.logprobs()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_large_layer_is_held_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    """Rounded to 16 bits only where that is asked for."""
    monkeypatch.setattr(exact, "LARGEST_FP32_LAYER", 0)
    with Checkpoint.open(write_checkpoint(tmp_path / "model", seed=1, dtype=dtype, scale=1.5)) as checkpoint:
        assert distance(ExactModel(checkpoint, ragged()).logprobs(), checkpoint, ragged()) <= 1e-4
        off = distance(ExactModel(checkpoint, ragged(), half=True).logprobs(), checkpoint, ragged())
        assert (off > 1e-3) == (dtype == "float32")


def test_a_model_beyond_fp32_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    edit_tensors(folder / "model.safetensors", lambda t: t["model.norm.weight"].fill(3e38))
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(CheckpointCorrupt, match="NaN or infinite in fp32"),
    ):
        ExactModel(checkpoint, ragged()).logprobs()

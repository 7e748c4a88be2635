"""A checkpoint seen through a rotation computes the same in fp32, whatever its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from testing.checkpoints import ODD, TINY, tied, write_checkpoint

from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import EMBEDDING
from stepscore_export.reference.layerwise_fp32 import ExactModel
from stepscore_export.weights.rotated_checkpoint import RotatedCheckpoint

SEQUENCES = [np.random.default_rng(seed).integers(0, TINY.vocab_size, 40) for seed in range(2)]


@pytest.mark.parametrize("shape", [TINY, tied(), ODD], ids=["tiny", "tied", "odd"])
def test_log_probs_are_those_of_the_checkpoint(tmp_path: Path, shape: object) -> None:
    folder = write_checkpoint(tmp_path / "model", shape, seed=3)
    with Checkpoint.open(folder) as checkpoint:
        rotated = RotatedCheckpoint(checkpoint)
        expected, found = (
            np.concatenate(ExactModel(each, SEQUENCES).logprobs()) for each in (checkpoint, rotated)
        )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_rows_of_a_part_are_those_of_the_whole(tmp_path: Path) -> None:
    with Checkpoint.open(write_checkpoint(tmp_path / "model", ODD, seed=3)) as checkpoint:
        rotated = RotatedCheckpoint(checkpoint)
        layer = "model.layers.0"
        for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"):
            whole = rotated.rows(f"{layer}.{name}.weight")
            np.testing.assert_array_equal(rotated.rows(f"{layer}.{name}.weight", 5, 9), whole[5:9])
        np.testing.assert_array_equal(rotated.rows(EMBEDDING, 2, 4), checkpoint.rows(EMBEDDING, 2, 4))
        assert (rotated.rows(f"{layer}.input_layernorm.weight") == 1).all()


def test_identical_checkpoints_stay_identical(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=3)
    with Checkpoint.open(folder) as one, Checkpoint.open(folder) as other:
        names = ("self_attn.v_proj.bias", "self_attn.o_proj.weight", "mlp.up_proj.weight")
        for name in (f"model.layers.1.{name}" for name in names):
            assert np.array_equal(RotatedCheckpoint(one).rows(name), RotatedCheckpoint(other).rows(name))

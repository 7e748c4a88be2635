"""Every family and trait against transformers, at lengths beyond the original ones of scaled RoPE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from testing.families import FAMILY_SHAPES
from testing.pairs import Checkpoints, PairOf
from testing.shared_folder import SharedFolder
from transformers import AutoModelForCausalLM

from stepscore.artifact.pair import Pair
from stepscore.engine import open_engine
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

RANDOM = np.random.default_rng(2)
SEQUENCES = [RANDOM.integers(0, 320, length) for length in (2, 50, 200)]
each_family = pytest.mark.parametrize("family", FAMILY_SHAPES)


@pytest.fixture
def pair_of(tmp_path_factory: pytest.TempPathFactory, family: str) -> PairOf:
    shape, shared = FAMILY_SHAPES[family], SharedFolder.of_this_run(tmp_path_factory)
    folder = shared.once(f"family-{family}", lambda folder: Checkpoints.write(folder, shape))
    return PairOf(Checkpoints.at(folder), shared)


def of_transformers(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    with torch.inference_mode():
        found = [
            model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            for ids in map(torch.from_numpy, SEQUENCES)
        ]
    return torch.cat(found).numpy()


@each_family
def test_a_pair_at_fp32_and_the_numpy_forward_are_transformers(pair_of: PairOf) -> None:
    """Measured 1e-5 at most."""
    engine, checkpoints = open_engine(Pair.open(pair_of())), pair_of.checkpoints
    scores = engine.logprobs(SEQUENCES)
    engine.close()
    for model, folder in enumerate((checkpoints.policy, checkpoints.reference)):
        truth = of_transformers(folder)
        pair = np.concatenate([each[model] for each in scores])
        with Checkpoint.open(folder) as checkpoint:
            numpy = np.concatenate([hidden_and_logprobs(checkpoint, each)[1] for each in SEQUENCES])
        assert np.abs(pair - truth).max() < 1e-4
        assert np.abs(numpy - truth).max() < 1e-4

"""Shapes that benchmarks measure, and synthetic checkpoints of them.

Checkpoints have random bf16 weights from a seed; the policy is half a percent from the reference. With the
real tokenizer (../shared/data) they read real text, else they have that of the bundled pair.
"""

from __future__ import annotations

import enum
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.peers.contender import Checkpoints
from testing.checkpoints import TINY, write_checkpoint
from testing.shared_data import SHARED_DATA

from stepscore.artifact.manifest import ModelName
from stepscore_export.families.base import DecoderConfig

SEED = 1
DISTANCE = 0.005
TOKENIZER = "qwen2.5-math-tokenizer"
BUNDLED = Path(__file__).parents[2] / "examples" / "pair" / "reference"

QWEN_0_5B = replace(
    TINY,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=151_936,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
QWEN_1_5B = replace(
    QWEN_0_5B,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    head_dim=128,
)
QWEN_7B = replace(
    QWEN_1_5B,
    hidden_size=3584,
    intermediate_size=18_944,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152_064,
    tie_word_embeddings=False,
)
QUICK = replace(
    TINY,
    vocab_size=151_936 if SHARED_DATA is not None else 16_384,  # two tiles of the head
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)


class ModelShape(enum.StrEnum):
    """Shape of the two models that a benchmark runs."""

    QWEN_0_5B = "0.5b"
    QWEN_1_5B = "1.5b"
    QWEN_7B = "7b"
    QUICK = "quick"

    @property
    def config(self) -> DecoderConfig:
        """Return the shape with all of its layers."""
        return _CONFIGS[self]

    def with_layers(self, layers: int | None) -> DecoderConfig:
        """Return the shape with fewer layers, or all."""
        return self.config if layers is None else replace(self.config, num_hidden_layers=layers)


_CONFIGS = {
    ModelShape.QWEN_0_5B: QWEN_0_5B,
    ModelShape.QWEN_1_5B: QWEN_1_5B,
    ModelShape.QWEN_7B: QWEN_7B,
    ModelShape.QUICK: QUICK,
}


def shape_facts(shape: ModelShape, config: DecoderConfig) -> dict[str, Any]:
    """Return the measured configuration, and how many layers its shape has, as a result holds them."""
    return {
        "shape": {"name": shape.value, **msgspec.to_builtins(config)},
        "all_layers": shape.config.num_hidden_layers,
    }


def real_facts(config: DecoderConfig) -> dict[str, Any]:
    """Return the configuration of real checkpoints, as a result holds it, with the name of its shape."""
    shapes = (each for each in ModelShape if each.config.hidden_size == config.hidden_size)
    name = next((each.value for each in shapes), f"{config.hidden_size}-wide")
    return {
        "shape": {"name": name, **msgspec.to_builtins(config)},
        "all_layers": config.num_hidden_layers,
        "real": True,
    }


def write_models(folder: Path, shape: DecoderConfig) -> Checkpoints:
    """Write policy and reference, with the real tokenizer or the bundled one."""
    return Checkpoints(*(write_model(folder, name, shape) for name in ("policy", "reference")), folder)


def write_model(folder: Path, name: ModelName, shape: DecoderConfig) -> Path:
    """Write one of the two models, to the folder of its name."""
    perturb = DISTANCE if name == "policy" else 0.0
    checkpoint = write_checkpoint(folder / name, shape, seed=SEED, dtype="bfloat16", perturb=perturb)
    write_tokenizer_of(checkpoint)
    return checkpoint


def write_tokenizer_of(checkpoint: Path) -> None:
    """Write the real tokenizer if the shared data is here, else that of the bundled pair."""
    folder = BUNDLED if SHARED_DATA is None else SHARED_DATA / TOKENIZER
    for file in folder.iterdir():
        if SHARED_DATA is not None or file.name.startswith("tokenizer"):  # not the model beside it
            shutil.copyfile(file, checkpoint / file.name)

"""What parity is measured on: pairs of random models, token sequences for them, and where their steps end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from parity_tests.support.fp64_reference import Tokens
from testing.checkpoints import TINY, DType, write_checkpoint
from testing.families import FAMILY_SHAPES

from stepscore_export.families.base import DecoderConfig

LENGTHS = (2, 3, 17, 64, 129, 512)
STEP_TOKENS = 24  # random tokens have no steps: one ends every so many tokens, and one with the sequence
SCALE = 1.5  # of the random weights: log-probs spread over several nats, as those of a trained model do


@dataclass(frozen=True)
class Models:
    """The two checkpoint folders."""

    policy: Path
    reference: Path

    def swapped(self) -> Models:
        return Models(policy=self.reference, reference=self.policy)


@dataclass(frozen=True)
class RandomPair:
    """A random reference, and the policy as the same weights plus a difference of relative size `perturb`."""

    name: str
    shape: DecoderConfig
    perturb: float = 0.01
    dtype: DType = "float32"
    lengths: tuple[int, ...] = LENGTHS

    def write(self, folder: Path) -> Models:
        def write(name: str, perturb: float) -> Path:
            return write_checkpoint(
                folder / name, self.shape, seed=1, dtype=self.dtype, scale=SCALE, perturb=perturb
            )

        return Models(write("policy", self.perturb), write("reference", 0.0))

    def sequences(self, lengths: Sequence[int] = ()) -> list[Tokens]:
        random = np.random.default_rng(7)
        return [random.integers(0, self.shape.vocab_size, length) for length in lengths or self.lengths]


def regular_step_ends(length: int) -> npt.NDArray[np.int64]:
    """Indices into the log-probs of a sequence of `length` tokens.

    >>> regular_step_ends(60)
    array([23, 47, 58])
    """
    return np.append(np.arange(STEP_TOKENS - 1, length - 2, STEP_TOKENS), length - 2)


_SHAPE = replace(TINY, max_position_embeddings=1024)

TIED = RandomPair(
    "tied head, 4 heads over 4 keys",
    replace(_SHAPE, num_hidden_layers=3, num_key_value_heads=4, vocab_size=401, tie_word_embeddings=True),
)
UNTIED = RandomPair(
    "4 layers, 4 heads over 2 keys, stored bf16",
    replace(_SHAPE, hidden_size=128, intermediate_size=352, num_hidden_layers=4, head_dim=32),
    dtype="bfloat16",
)
ODD = RandomPair(
    "hidden 72, head size 48, 4 heads over 1 key, intermediate 99, vocabulary 1001",
    replace(
        _SHAPE, hidden_size=72, intermediate_size=99, num_key_value_heads=1, head_dim=48, vocab_size=1001
    ),
)
WIDE = RandomPair(
    "152,064 columns, hidden 40",
    replace(_SHAPE, hidden_size=40, num_hidden_layers=1, vocab_size=152_064),
    lengths=(
        2,
        17,
        129,
    ),  # its columns count, and in float64 every token costs as much as a hundred of others
)
RANDOM_PAIRS = (TIED, UNTIED, ODD, WIDE)
FAMILY_PAIRS = tuple(RandomPair(name, shape, lengths=(3, 64, 200)) for name, shape in FAMILY_SHAPES.items())

"""Random batches to score, and how far apart two engines' log-probs of them are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from parity_tests.support.random_pairs import UNTIED
from testing.hypothesis_profiles import examples

from stepscore_export.fidelity import Scores

Logprobs = npt.NDArray[np.float32]

few_examples = examples(25)

token_ids = st.integers(0, UNTIED.shape.vocab_size - 1)
sequences = st.lists(token_ids, min_size=2, max_size=60).map(lambda ids: np.asarray(ids, np.int64))
batches = st.lists(sequences, min_size=1, max_size=6)


def flat(scores: list[tuple[Logprobs, Logprobs]]) -> tuple[Logprobs, Logprobs]:
    """Concatenate the log-probs of a batch: all of the policy, all of the reference."""
    policy, reference = zip(*scores, strict=True)
    return np.concatenate(policy), np.concatenate(reference)


def largest_error(scores: Scores, truth: Scores) -> float:
    """Return the largest difference of any log-prob, in nats."""
    return max(
        float(np.abs(ours - theirs).max())
        for pair in zip(scores, truth, strict=True)
        for ours, theirs in zip(*pair, strict=True)
    )

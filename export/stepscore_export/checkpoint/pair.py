"""Decides whether two checkpoints are a pair: the same shapes, and the same token ids for every text."""

from __future__ import annotations

import logging

from stepscore.errors import PairIncompatible
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.tokenizer_difference import tokenizer_difference

LOGGER = logging.getLogger("stepscore")

_SAME_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "qk_norm",
)


def check_pair(policy: Checkpoint, reference: Checkpoint) -> None:
    """Raise PairIncompatible unless both models have the same shapes and tokenize all text alike.

    Constants (RoPE, rms_norm_eps), positions and tied embeddings may differ, and so may the rows of
    the vocabulary that stand for no token (`cut_padding`).
    """
    for key in _SAME_SHAPE:
        of_policy, of_reference = getattr(policy.config, key), getattr(reference.config, key)
        if of_policy != of_reference:
            raise PairIncompatible(
                f"{key} is {of_policy} in the {policy.name} and {of_reference} in the {reference.name}",
                hint="use the model that the policy was trained from as the reference",
            )
    difference = tokenizer_difference(policy.tokenizer_json(), reference.tokenizer_json())
    if difference is not None:
        raise PairIncompatible(
            f"the tokenizers of {policy.name} and {reference.name} differ in their {difference}",
            hint="use two models with one tokenizer: both must read the same token ids",
        )
    rows = min(policy.config.vocab_size, reference.config.vocab_size)
    for model in (policy, reference):
        if model.largest_token >= rows:
            raise PairIncompatible(
                f"vocab_size is {policy.config.vocab_size} in the {policy.name} and "
                f"{reference.config.vocab_size} in the {reference.name}: too few for token "
                f"{model.largest_token} of the {model.name}",
                hint="use the model that the policy was trained from as the reference",
            )


def cut_padding(policy: Checkpoint, reference: Checkpoint) -> None:
    """Cut the rows that one vocabulary has more than the other: they stand for no token of either.

    The log-probs of both models are then normalized over the same rows.
    """
    rows = min(policy.config.vocab_size, reference.config.vocab_size)
    for model in (policy, reference):
        if (more := model.config.vocab_size - rows) > 0:
            LOGGER.warning(
                "%s: vocab_size is %d, the other model's %d; the last %d rows stand for no token and are "
                "cut, so they take no share of any probability",
                *(model.name, model.config.vocab_size, rows, more),
            )
            model.keep_vocabulary(rows)

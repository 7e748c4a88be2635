"""A pair of real models against transformers: tokens, numbers at fp32, and the error of each form.

STEPSCORE_REAL_PAIR names its folder, such as tools/make_smollm2_pair.py makes. Any supported family will do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from parity_tests.support.batches import largest_error
from parity_tests.support.fp64_reference import Numerics, Tokens, pair_logprobs
from parity_tests.support.pair_cache import Workshop, scored
from parity_tests.support.random_pairs import Models
from parity_tests.support.storage_forms import FP32, INT8_INT4, INTEGER, Storage
from testing.real_pair import REAL_PAIR, VARIABLE
from transformers import AutoTokenizer

from stepscore.enums import Convention
from stepscore.prompt.encoder import EncodedPrompt
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.fidelity import Scores, fidelity
from stepscore_export.validation.texts import bundled_texts

pytestmark = [
    pytest.mark.real_pair,
    pytest.mark.slow,
    pytest.mark.skipif(REAL_PAIR is None, reason=f"no real pair: {VARIABLE} names no folder"),
]

RECORDS = bundled_texts().records[:8]


class Real(NamedTuple):
    """The pair, the bundled solutions that it is tried on, and what transformers says of them at fp32."""

    models: Models
    prompts: list[EncodedPrompt]
    truth: Scores

    @property
    def sequences(self) -> list[Tokens]:
        return [prompt.token_ids for prompt in self.prompts]


@pytest.fixture(scope="module")
def real() -> Real:
    assert REAL_PAIR is not None
    models = Models(REAL_PAIR / "policy", REAL_PAIR / "reference")
    with Checkpoint.open(models.policy, "policy") as checkpoint:
        _, encoder = prompt_template(checkpoint)
    prompts = [encoder.encode(each.problem, each.steps, Convention.CARD) for each in RECORDS]
    sequences = [each.token_ids for each in prompts]
    truth = pair_logprobs(models.policy, models.reference, sequences, Numerics.PYTORCH_FP32)
    return Real(models, prompts, truth)


def test_token_ids_of_a_real_model_are_those_of_transformers(real: Real) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real.models.policy)
    for record, prompt in zip(RECORDS, real.prompts, strict=True):
        turns = [
            {"role": "user", "content": record.problem},
            {"role": "assistant", "content": "\n\n".join(record.steps)},
        ]
        assert prompt.token_ids.tolist() == tokenizer.apply_chat_template(turns, return_dict=False)


def test_a_real_model_predicts_the_text_that_it_reads(real: Real) -> None:
    """Rows in another order, or a wrong rotary base, leave up to log(vocabulary) = 11 nats a token."""
    assert -np.mean(np.concatenate([reference for _, reference in real.truth])) < 4


def test_fp32_of_a_real_pair_is_within_1e_4_nats_of_transformers(workshop: Workshop, real: Real) -> None:
    scores = scored(workshop.engine(real.models, FP32.options), real.sequences)
    assert largest_error(scores, real.truth) <= 1e-4


@pytest.mark.parametrize(
    ("storage", "bound"),
    [
        pytest.param(INT8_INT4.calibrated(), 0.05, id="int8 + int4"),
        pytest.param(INTEGER.rotated().calibrated(), 0.1, id="the default form"),
    ],
)
def test_log_ratios_of_a_real_pair_keep_to_the_bound_of_their_form(
    workshop: Workshop, real: Real, storage: Storage, bound: float
) -> None:
    engine = workshop.engine(real.models, storage.options, calibration=storage.calibration)
    scores = scored(engine, real.sequences)
    assert fidelity(scores, real.truth, [each.step_ends for each in real.prompts]).ratio_error < bound

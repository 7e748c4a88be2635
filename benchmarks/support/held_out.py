"""Real solutions that no real pair was trained on, the same for every model, and real texts to calibrate on.

MATH problems with several samples each, GSM8K solutions of the first 300 problems, ProcessBench: held out
from the training of shared/real and of tools/make_smollm2_pair.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.workloads import BEST_OF_8, records
from numpy.typing import NDArray
from testing.shared_data import SHARED_DATA

from stepscore.enums import Convention
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.records import record_from
from stepscore_export.checkpoint.chat_template import literals, prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.tokenizer import TOKENIZER, read_chat_template
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.validation.texts import CALIBRATION_TOKENS, Texts, encode_texts

SEED = 11
UNSEEN = 300
"""Problems of GSM8K under this number are not trained on."""
MATH_PROBLEMS, SAMPLES, MATH_TOKENS = 10, 4, 290
GSM8K, GSM8K_TOKENS = 20, 230
PROCESSBENCH, PROCESSBENCH_TOKENS = 12, 260
COUNTED = 32_768
"""Tokens of Qwen2.5, most: no record is longer."""


@dataclass(frozen=True)
class Held:
    """Held-out solutions as token ids; `groups` are the indices of the samples of each MATH problem."""

    prompts: Sequence[EncodedPrompt]
    groups: Sequence[Sequence[int]]

    @property
    def sequences(self) -> list[NDArray[np.int64]]:
        """Token ids of each."""
        return [prompt.token_ids for prompt in self.prompts]

    @property
    def step_ends(self) -> list[NDArray[np.int64]]:
        """Indices into the log-probs at which steps end."""
        return [prompt.step_ends for prompt in self.prompts]


def held_out(policy: Path) -> tuple[Held, Held]:
    """Return the solutions that are measured, and others for the threshold.

    How long a solution may be is counted in tokens of Qwen2.5, so that every model is measured on the same.
    """
    with Checkpoint.open(policy, "policy") as checkpoint:
        _, encoder = prompt_template(checkpoint)
    counter = _length_counter()
    overhead = len(counter.prefix_ids()) + 5

    def encoded(record: dict[str, Any], encoder: PromptEncoder = encoder) -> EncodedPrompt:
        return encoder.encode(record["problem"], record["steps"], Convention.CARD)

    def short(found: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
        return [each for each in found if len(encoded(each, counter).token_ids) < limit + overhead]

    rng = np.random.default_rng(SEED)
    by_problem = defaultdict(list)
    for record in records(BEST_OF_8):
        by_problem[record["problem_id"]].append(record)
    problems = [samples[:SAMPLES] for samples in by_problem.values()]
    problems = [samples for samples in problems if len(short(samples, MATH_TOKENS)) == len(samples)]
    math = [each for index in rng.permutation(len(problems))[:MATH_PROBLEMS] for each in problems[index]]
    gsm8k = [each for each in records("gsm8k_solutions") if int(each["id"].split("-")[1]) < UNSEEN]
    others = [
        *_drawn(rng, short(gsm8k, GSM8K_TOKENS), 2 * GSM8K),
        *_drawn(rng, short(list(records("processbench_gsm8k")), PROCESSBENCH_TOKENS), 2 * PROCESSBENCH),
    ]
    prompts = [encoded(record) for record in [*math, *others[::2]]]
    groups = [range(first, first + SAMPLES) for first in range(0, len(math), SAMPLES)]
    return Held(prompts, groups), Held([encoded(record) for record in others[1::2]], [])


def _length_counter() -> PromptEncoder:
    if SHARED_DATA is None:
        raise SystemExit("the texts are in the shared data only: set STEPSCORE_SHARED_DATA to its folder")
    folder = CheckpointFolder.open(SHARED_DATA / "qwen2.5-math-tokenizer")
    template = literals(read_chat_template(folder))
    return PromptEncoder(folder.text(TOKENIZER), template, max_tokens=COUNTED)


def _drawn(rng: np.random.Generator, found: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [found[index] for index in rng.permutation(len(found))[:count]]


def real_texts(policy: Path, held: Held) -> Texts:
    """Return solutions of shared/data that are not measured, as many tokens as an export takes by default.

    Half of GSM8K, half of MATH, one solution a problem. Training saw the problems of GSM8K among them.
    """
    with Checkpoint.open(policy, "policy") as checkpoint:
        _, encoder = prompt_template(checkpoint)
    measured = {ids.tobytes() for ids in held.sequences}

    def is_measured(record: dict[str, Any]) -> bool:
        ids = encoder.encode(record["problem"], record["steps"], Convention.CARD).token_ids
        return ids.tobytes() in measured

    math = list(records(BEST_OF_8))
    taken = {record["problem"] for record in math if is_measured(record)}
    math = [record for record in math if record["problem"] not in taken][::8]
    gsm8k = [each for each in records("gsm8k_solutions") if int(each["id"].split("-")[1]) >= UNSEEN]
    mixed = [
        record_from({"problem": each["problem"], "steps": each["steps"]})
        for both in zip(gsm8k[::4], math, strict=False)
        for each in both
    ]
    texts = Texts(Path("shared-data"), tuple(mixed))
    return Texts(texts.path, texts.records[: len(encode_texts(texts, encoder, CALIBRATION_TOKENS))])

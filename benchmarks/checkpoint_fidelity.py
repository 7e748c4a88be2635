"""Measure the error of forms on real checkpoints: any two Hugging Face folders.

    make bench-fidelity FLAGS="--pair-checkpoints POLICY REFERENCE"

It writes results/checkpoint_fidelity_NAME.json, where NAME is the policy's folder. With --forms the other
rows of that file stay as they are; each row gives the day on which it was measured.

The truth is both checkpoints in fp32, a layer at a time (kept in --scratch, if one is given). PyTorch is
transformers with a log-softmax in the model's precision, as the model card has it. The text is
held out from the training of shared/real: MATH problems with several samples each, GSM8K solutions of the
first 300 problems, ProcessBench. A first error is the first step whose reward is below the 10 % quantile of
the true step rewards of other problems; the best of N is the sample with the highest outcome reward.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.forms import REAL_FORMS, CalibrationText
from benchmarks.support.results import QUICK_RESULTS, RESULTS, logged, read_results, write_result
from benchmarks.support.workloads import BEST_OF_8, records
from numpy.typing import NDArray
from parity_tests.support.fp64_reference import Numerics, pair_logprobs

from stepscore.artifact.pair import Pair
from stepscore.batching.planner import plan
from stepscore.engine import open_engine
from stepscore.engine.base import EngineOptions
from stepscore.enums import Convention, Provider
from stepscore.evaluation.first_error import first_error
from stepscore.prompt.encoder import EncodedPrompt
from stepscore.records import record_from
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.fidelity import Scores, as_float64, fidelity, step_sums
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.reference.layerwise_fp32 import fp32_logprobs
from stepscore_export.validation.texts import (
    CALIBRATION_TOKENS,
    NO_TEXTS,
    Texts,
    bundled_texts,
    calibration_texts,
    encode_texts,
)

SEED = 11
UNSEEN = 300
"""Problems of GSM8K under this number are not trained on."""
MATH_PROBLEMS, SAMPLES, MATH_TOKENS = 10, 4, 290
GSM8K, GSM8K_TOKENS = 20, 230
PROCESSBENCH, PROCESSBENCH_TOKENS = 12, 260
BATCH_TOKENS = 2048
QUANTILE = 0.1
BOOTSTRAP = 1000
PYTORCH: Mapping[str, Numerics] = {
    "PyTorch fp32": Numerics.PYTORCH_FP32,
    "PyTorch fp16": Numerics.PYTORCH_FP16,
    "PyTorch bf16": Numerics.PYTORCH_BF16,
}


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
    """Return the solutions that are measured, and others for the threshold."""
    with Checkpoint.open(policy, "policy") as checkpoint:
        _, encoder = prompt_template(checkpoint)

    def encoded(record: dict[str, Any]) -> EncodedPrompt:
        return encoder.encode(record["problem"], record["steps"], Convention.CARD)

    def short(found: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
        overhead = len(encoder.prefix_ids()) + 5
        return [each for each in found if len(encoded(each).token_ids) < limit + overhead]

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


def truth_of(policy: Path, reference: Path, held: Sequence[Held], kept: Path | None) -> list[Scores]:
    """Return the fp32 log-probs of each set, from the file `kept` where it has them."""
    if kept is None or not kept.exists():
        sequences = [ids for each in held for ids in each.sequences]
        with Checkpoint.open(policy, "policy") as one, Checkpoint.open(reference, "reference") as other:
            scores = fp32_logprobs(one, other, sequences)
        if kept is not None:
            np.savez(kept, *[np.stack(each) for each in scores])
    else:
        with np.load(kept) as arrays:
            scores = [(arrays[name][0], arrays[name][1]) for name in arrays.files]
    sizes = [len(each.prompts) for each in held]
    return [scores[sum(sizes[:index]) : sum(sizes[: index + 1])] for index in range(len(sizes))]


def scored(pair: Path, held: Held) -> tuple[Scores, float]:
    """Return the log-probs of a pair, and the seconds they took."""
    engine = open_engine(Pair.open(pair), EngineOptions(Provider.CPU))
    started = time.perf_counter()
    groups = plan(held.sequences, [0] * len(held.prompts), BATCH_TOKENS, given=engine.given)
    found: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for group, logprobs in zip(groups, engine.run([each.batch for each in groups]), strict=True):
        for member, targets in zip(group.members, group.batch.target_of, strict=True):
            found[member] = logprobs["policy"][targets], logprobs["reference"][targets]
    seconds = time.perf_counter() - started
    engine.close()
    return as_float64([found[index] for index in range(len(found))]), seconds


def judged(scores: Scores, truth: Scores, held: Held, threshold: float) -> dict[str, Any]:
    """Return errors, a 90 % interval of the log-ratio error over solutions, and how often decisions agree."""
    found = fidelity(scores, truth, held.step_ends, threshold)
    squares = np.array(
        [
            (np.sum((a - b - (c - d)) ** 2), np.sum((c - d) ** 2))
            for (a, b), (c, d) in zip(scores, truth, strict=True)
        ]
    )
    drawn = np.random.default_rng(0).integers(0, len(squares), (BOOTSTRAP, len(squares)))
    errors = np.sqrt(squares[drawn, 0].sum(axis=1) / squares[drawn, 1].sum(axis=1))
    reference = np.concatenate([one[1] - other[1] for one, other in zip(scores, truth, strict=True)])
    return {
        **asdict(found),
        "ratio_error_interval": np.quantile(errors, [0.05, 0.95]).tolist(),
        "reference_logprob_rms": float(np.sqrt(np.mean(reference**2))),
        "same_best": sum(_best(scores, group, held) == _best(truth, group, held) for group in held.groups),
        "problems": len(held.groups),
    }


def _best(scores: Scores, group: Sequence[int], held: Held) -> int:
    outcome = [step_sums(scores, held.step_ends)[index].sum() for index in group]
    return int(np.argmax(outcome))


def measure(
    policy: Path, reference: Path, options: ExportOptions, scratch: Path, calibration: Texts
) -> tuple[Path, float]:
    """Export a pair, its self-test on one text, and return its folder and the seconds it took."""
    one = Texts(None, bundled_texts().records[:1])
    output = scratch / "pair"
    started = time.perf_counter()
    export_pair(policy, reference, output, options, texts=one, calibration=calibration, force=True)
    return output, time.perf_counter() - started


def run(options: argparse.Namespace) -> Path:
    """Measure every form on the checkpoints of the options; return the result's file."""
    policy, reference = options.pair_checkpoints
    held, others = held_out(policy)
    kept = None if options.scratch is None else options.scratch / f"truth-{policy.name}.npz"
    truth, other_truth = truth_of(policy, reference, [held, others], kept)
    steps = np.concatenate(step_sums(other_truth, others.step_ends))
    threshold = float(np.quantile(steps, QUANTILE))
    first_errors = [first_error(row, threshold) for row in step_sums(truth, held.step_ends)]
    name = f"checkpoint_fidelity_{policy.name}"
    result: dict[str, Any] = {
        "checkpoints": [policy.name, reference.name],
        "distance": _distance(policy, reference),
        "threshold_nats": threshold,
        "with_first_error": sum(found >= 0 for found in first_errors),
    }
    rows = _earlier_rows(name, quick=options.quick) if options.forms else {}
    for form in options.forms or [*PYTORCH, *REAL_FORMS]:
        scores, facts = scores_of(form, policy, reference, held, options.scratch)
        row = {"form": form, "day": datetime.date.today().isoformat(), **facts}
        rows[form] = logged(row | judged(scores, truth, held, threshold))
        ordered = [rows[each] for each in [*PYTORCH, *REAL_FORMS] if each in rows]
        path = write_result(name, {**result, "rows": ordered}, quick=options.quick)
    return path


def scores_of(
    form: str, policy: Path, reference: Path, held: Held, scratch: Path | None
) -> tuple[Scores, dict[str, float | None]]:
    """Return the log-probs of one form, its megabytes, and the seconds of its export and of scoring."""
    if form in PYTORCH:
        started = time.perf_counter()
        scores = pair_logprobs(policy, reference, held.sequences, PYTORCH[form])
        seconds = time.perf_counter() - started
        return scores, {"megabytes": None, "export_seconds": None, "seconds": seconds}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        options, calibrated_on = REAL_FORMS[form]
        calibration = _calibration(calibrated_on, policy, held)
        pair, export_seconds = measure(policy, reference, options, Path(folder), calibration)
        scores, seconds = scored(pair, held)
        opened = Pair.open(pair)
        facts = {
            "megabytes": opened.num_bytes() / 1e6,
            "export_seconds": export_seconds,
            "seconds": seconds,
        }
        stored = opened.manifest.difference
        if stored is not None and stored.unchanged is not None:
            facts |= {"unchanged": stored.unchanged, "policy_bits": stored.bits}
    return scores, facts


def _calibration(text: CalibrationText, policy: Path, held: Held) -> Texts:
    if text is CalibrationText.REAL:
        return real_texts(policy, held)
    return calibration_texts() if text is CalibrationText.BUNDLED else NO_TEXTS


def _distance(policy: Path, reference: Path) -> float:
    with Checkpoint.open(policy, "policy") as one, Checkpoint.open(reference, "reference") as other:
        return measure_distance(one, other).overall


def _earlier_rows(name: str, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier result by form."""
    earlier = read_results(QUICK_RESULTS if quick else RESULTS).get(name, {"rows": []})
    return {row["form"]: row for row in earlier["rows"]}

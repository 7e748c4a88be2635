"""Measure the error of forms on real checkpoints: any two Hugging Face folders.

    make bench-fidelity FLAGS="--pair-checkpoints POLICY REFERENCE --model MODEL --name NAME"

It writes results/checkpoint_fidelity_NAME.json, where NAME is the policy's folder unless it is given; MODEL
says in the tables what the reference is. With --forms the other rows of that file stay as they are; each row
gives the day on which it was measured.

The truth is both checkpoints in fp32, a layer at a time (kept in --scratch, if one is given). PyTorch is
transformers with a log-softmax in the model's precision, as the model card has it. The text is that of
benchmarks/support/held_out.py. A first error is the first step whose reward is below the 10 % quantile of
the true step rewards of other problems; the best of N is the sample with the highest outcome reward.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.forms import REAL_FORMS, CalibrationText
from benchmarks.support.held_out import Held, held_out, real_texts
from benchmarks.support.results import QUICK_RESULTS, RESULTS, logged, read_results, write_result
from numpy.typing import NDArray
from parity_tests.support.fp64_reference import Numerics, pair_logprobs

from stepscore.artifact.pair import Pair
from stepscore.batching.planner import plan
from stepscore.engine import open_engine
from stepscore.engine.base import EngineOptions
from stepscore.enums import Provider
from stepscore.evaluation.first_error import first_error
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.distance import measure_distance
from stepscore_export.fidelity import Scores, as_float64, fidelity, step_sums
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.reference.layerwise_fp32 import fp32_logprobs
from stepscore_export.validation.texts import (
    NO_TEXTS,
    Texts,
    bundled_texts,
    calibration_texts,
)

BATCH_TOKENS = 2048
QUANTILE = 0.1
BOOTSTRAP = 1000
PYTORCH: Mapping[str, Numerics] = {
    "PyTorch fp32": Numerics.PYTORCH_FP32,
    "PyTorch fp16": Numerics.PYTORCH_FP16,
    "PyTorch bf16": Numerics.PYTORCH_BF16,
}


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
    name = f"checkpoint_fidelity_{options.name or policy.name}"
    kept = None if options.scratch is None else options.scratch / f"truth-{name}.npz"
    truth, other_truth = truth_of(policy, reference, [held, others], kept)
    steps = np.concatenate(step_sums(other_truth, others.step_ends))
    threshold = float(np.quantile(steps, QUANTILE))
    first_errors = [first_error(row, threshold) for row in step_sums(truth, held.step_ends)]
    result: dict[str, Any] = {
        "model": options.model or reference.name,
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

"""Make the bundled pair: tokenizer, reference, policy, problems, and the report on what they can do.

    python examples/train.py --output DIR

The reference learns the text. The policy starts from it and learns from outcome labels only, as an implicit
process reward model; that it marks the wrong step, which no label ever named, is what the report measures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from pair_evaluation import evaluate, score_samples
from pair_text import SEPARATOR, Encoder
from pair_tokenizer import save_tokenizer, train_tokenizer
from pair_training import PolicyRecipe, ReferenceRecipe, make_model, train_policy, train_reference
from problems import Sample, make_samples

TEST_SEED, THRESHOLD_SEED, TOKENIZER_SEED, REFERENCE_SEED, POLICY_SEED = range(1, 6)
SPLIT_SIZE = 400
TOKENIZER_SAMPLES = 4000
TOKENIZER_SIZE = 600
SYSTEM_TURN = "Please reason step by step, and put your final answer within \\boxed{}."
THREADS = 2

REFERENCE = ReferenceRecipe(
    seed=REFERENCE_SEED,
    drill_steps=400,
    story_steps=1200,
    drill_batch_size=48,
    story_batch_size=24,
    muon_learning_rate=0.02,
    adam_learning_rate=3e-3,
    wrong_share=0.4,
    prompt_weight=0.1,
)
POLICY = PolicyRecipe(
    seed=POLICY_SEED,
    steps=300,
    pairs_per_batch=16,
    learning_rate=6e-5,
    beta=0.05,
    prompt_anchor=0.5,
)


def main() -> None:
    """Train both models, judge them, write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for pair/, *.jsonl, training.json")
    output: Path = parser.parse_args().output
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    reference_folder, policy_folder = output / "pair" / "reference", output / "pair" / "policy"
    for folder in (reference_folder, policy_folder):
        folder.mkdir(parents=True, exist_ok=True)

    threshold_split, test_split = make_splits()
    write_split(threshold_split, "threshold", output / "threshold.jsonl")
    write_split(test_split, "test", output / "problems.jsonl")
    held_out = frozenset(sample.problem for sample in (*threshold_split, *test_split))

    tokenizer = make_tokenizer((reference_folder, policy_folder), held_out)
    encoder = Encoder(tokenizer)
    reference = make_model(tokenizer, REFERENCE.seed)
    reference_log = train_reference(reference, encoder, REFERENCE, held_out)
    reference.save_pretrained(reference_folder)
    policy, policy_log = train_policy(reference, encoder, POLICY, held_out)
    policy.save_pretrained(policy_folder)

    report = {
        "seeds": {"test": TEST_SEED, "threshold": THRESHOLD_SEED, "tokenizer": TOKENIZER_SEED},
        "recipes": {"reference": asdict(REFERENCE), "policy": asdict(POLICY)},
        "training": {"reference": asdict(reference_log), "policy": asdict(policy_log)},
        "pair": describe_pair(policy, reference),
        "evaluation": judge_pair(policy, reference, encoder, threshold_split, test_split),
        "machine": describe_machine(),
    }
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def make_splits() -> tuple[list[Sample], list[Sample]]:
    """The threshold split and the test split: no problem text occurs in both, or twice."""
    threshold_split = _distinct(THRESHOLD_SEED, exclude=set())
    return threshold_split, _distinct(TEST_SEED, exclude={sample.problem for sample in threshold_split})


def _distinct(seed: int, exclude: set[str]) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for sample in make_samples(random.Random(seed), 0.5, exclude):
        samples.setdefault(sample.problem, sample)
        if len(samples) == SPLIT_SIZE:
            break
    return list(samples.values())


def write_split(samples: list[Sample], prefix: str, path: Path) -> None:
    """One ProcessBench record a line."""
    with path.open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            record = {
                "id": f"{prefix}-{number:03d}",
                "generator": f"synthetic-{sample.style}",
                "problem": sample.problem,
                "steps": sample.steps,
                "final_answer": sample.final_answer,
                "final_answer_correct": sample.final_answer_correct,
                "label": sample.label,
            }
            file.write(json.dumps(record) + "\n")


def make_tokenizer(folders: tuple[Path, Path], exclude: frozenset[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer on samples of its own, save it and load it back as any user would."""
    samples = islice(make_samples(random.Random(TOKENIZER_SEED), 0.5, exclude), TOKENIZER_SAMPLES)
    turns = chain.from_iterable(
        (f"system\n{SYSTEM_TURN}", f"user\n{sample.problem}", f"assistant\n{SEPARATOR.join(sample.steps)}")
        for sample in samples
    )
    trained = train_tokenizer(turns, TOKENIZER_SIZE)
    for folder in folders:
        save_tokenizer(trained, folder)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(f"{folders[0]}: expected a fast tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def describe_pair(policy: Qwen2ForCausalLM, reference: Qwen2ForCausalLM) -> dict[str, Any]:
    """How far the policy is from the reference: |D|/|W| (Frobenius) over all matrices and of every tensor."""
    tensors: dict[str, float] = {}
    difference = weight = 0.0
    for (name, tuned), base in zip(policy.named_parameters(), reference.parameters(), strict=True):
        squares = [float(t.detach().double().square().sum()) for t in (tuned - base, base)]
        tensors[name] = (squares[0] / squares[1]) ** 0.5
        if tuned.dim() == 2:
            difference, weight = difference + squares[0], weight + squares[1]
    return {
        "parameters": reference.num_parameters(),
        "relative_difference": (difference / weight) ** 0.5,
        "relative_difference_per_tensor": tensors,
    }


def judge_pair(
    policy: Qwen2ForCausalLM,
    reference: Qwen2ForCausalLM,
    encoder: Encoder,
    threshold_split: list[Sample],
    test_split: list[Sample],
) -> dict[str, Any]:
    """Test F1 by convention and series, outcome accuracy, and the size of the log-ratios."""
    scored = score_samples(policy, reference, encoder, threshold_split, POLICY.beta)
    tested = score_samples(policy, reference, encoder, test_split, POLICY.beta)
    outcomes = [(sample.cumulative_rewards["response"][-1] > 0) == (sample.label < 0) for sample in tested]
    log_ratios = np.concatenate([sample.log_ratios for sample in tested])
    return {
        "outcome_accuracy": float(np.mean(outcomes)),
        "log_ratio_rms_nats": float(np.sqrt(np.mean(log_ratios**2))),
        "first_error": {name: asdict(result) for name, result in evaluate(scored, tested).items()},
    }


def describe_machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()

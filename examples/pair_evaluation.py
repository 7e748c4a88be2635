"""Does the pair find the first wrong step? Rewards by all three conventions, F1 by ProcessBench's definition.

An oracle of its own: step ends come from re-tokenising every prefix, as the model card does, and nothing of
the `stepscore` packages is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2ForCausalLM

from pair_text import SEPARATOR, Encoder, token_logprobs
from problems import Sample

Floats = NDArray[np.float64]

CONVENTIONS = ("card", "response", "exact")


@dataclass(frozen=True)
class ScoredSample:
    """One sample's log-ratios, where its response starts, and its cumulative rewards by convention."""

    label: int
    log_ratios: Floats
    response_start: int
    cumulative_rewards: dict[str, Floats]

    def scores(self, convention: str, series: str) -> Floats:
        """The scores to be judged; `step_rewards` are the first differences of `cumulative_rewards`."""
        cumulative = self.cumulative_rewards[convention]
        return np.diff(cumulative, prepend=0.0) if series == "step_rewards" else cumulative


@dataclass(frozen=True)
class FirstErrorF1:
    """Shares of the wrong and of the correct samples judged exactly right, and their harmonic mean."""

    threshold: float
    accuracy_wrong: float
    accuracy_correct: float
    f1: float


def score_samples(
    policy: Qwen2ForCausalLM,
    reference: Qwen2ForCausalLM,
    encoder: Encoder,
    samples: list[Sample],
    beta: float,
) -> list[ScoredSample]:
    """Rewards of every sample, one sequence at a time so that no padding is involved."""
    return [_score_sample(policy, reference, encoder, sample, beta) for sample in samples]


def _score_sample(
    policy: Qwen2ForCausalLM, reference: Qwen2ForCausalLM, encoder: Encoder, sample: Sample, beta: float
) -> ScoredSample:
    sequence = encoder.encode([sample])[0]
    ids = torch.tensor([sequence])
    with torch.inference_mode():
        log_ratios = (token_logprobs(policy, ids) - token_logprobs(reference, ids))[0].double().numpy()
    start = encoder.response_start(sequence)
    from_prompt = beta * np.cumsum(log_ratios)
    from_response = from_prompt - from_prompt[start - 2]
    card = card_step_ends(encoder, sample)
    exact = exact_step_ends(encoder, sample)
    rewards = {"card": from_prompt[card], "response": from_response[card], "exact": from_response[exact]}
    return ScoredSample(sample.label, log_ratios, start, rewards)


def card_step_ends(encoder: Encoder, sample: Sample) -> list[int]:
    """The model card's index into the log-probs for every step, by encoding every prefix."""
    ends = []
    for count in range(1, len(sample.steps) + 1):
        text = encoder.render(sample.problem, SEPARATOR.join(sample.steps[:count])).strip()
        if count < len(sample.steps):
            text += SEPARATOR
        ends.append(len(encoder.encode_texts([text])[0].ids) - 2)
    return ends


def exact_step_ends(encoder: Encoder, sample: Sample) -> list[int]:
    """Index of the log-prob of the token that closes each step: its separator, at last <|im_end|>."""
    response = SEPARATOR.join(sample.steps)
    text = encoder.render(sample.problem, response)
    encoding = encoder.encode_texts([text])[0]
    character = text.rindex(response)
    ends = []
    for step in sample.steps[:-1]:
        character += len(step) + len(SEPARATOR)
        ends.append(encoding.char_to_token(character - 1) - 1)
    ends.append(encoding.ids.index(encoder.turn_end, ends[-1]) - 1)
    return ends


def first_below(scores: Floats, threshold: float) -> int:
    """The predicted first wrong step: the first score below the threshold, else -1."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if below.size else -1


def first_error_f1(scores: list[Floats], labels: list[int], threshold: float) -> FirstErrorF1:
    """ProcessBench's F1: a sample counts as right when exactly its first wrong step (or -1) is predicted."""
    right = np.array([first_below(s, threshold) == label for s, label in zip(scores, labels, strict=True)])
    wrong_samples = np.array(labels) >= 0
    on_wrong, on_correct = float(right[wrong_samples].mean()), float(right[~wrong_samples].mean())
    f1 = 2 * on_wrong * on_correct / (on_wrong + on_correct) if on_wrong + on_correct else 0.0
    return FirstErrorF1(threshold, on_wrong, on_correct, f1)


def best_threshold(scores: list[Floats], labels: list[int]) -> float:
    """The threshold of the highest F1 among all distinct scores, the lowest one at a tie."""
    candidates = [*np.unique(np.concatenate(scores)), np.inf]
    return float(max(candidates, key=lambda t: first_error_f1(scores, labels, t).f1))


def evaluate(
    threshold_split: Iterable[ScoredSample], test: Iterable[ScoredSample]
) -> dict[str, FirstErrorF1]:
    """Test F1 of every convention and series, each with the threshold of the other split."""
    threshold_split, test = list(threshold_split), list(test)
    results = {}
    for convention in CONVENTIONS:
        for series in ("step_rewards", "cumulative_rewards"):
            chosen = best_threshold(
                [sample.scores(convention, series) for sample in threshold_split],
                [sample.label for sample in threshold_split],
            )
            results[f"{convention} {series}"] = first_error_f1(
                [sample.scores(convention, series) for sample in test],
                [sample.label for sample in test],
                chosen,
            )
    return results

"""The two models: an untrained Qwen2, the reference's training and the policy's training."""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pair_text import Encoder, token_logprobs
from problems import make_pairs, make_samples

Losses = dict[str, torch.Tensor]

LOG_EVERY = 50
WARM_UP = 50
LAST_RATE = 0.01


@dataclass(frozen=True)
class ReferenceRecipe:
    """Muon for the weight matrices, AdamW for the embedding, biases and norms."""

    seed: int
    drill_steps: int
    story_steps: int
    drill_batch_size: int
    story_batch_size: int
    muon_learning_rate: float
    adam_learning_rate: float
    wrong_share: float
    prompt_weight: float


@dataclass(frozen=True)
class PolicyRecipe:
    """AdamW with a small learning rate, so that the policy stays near the reference."""

    seed: int
    steps: int
    pairs_per_batch: int
    learning_rate: float
    beta: float
    prompt_anchor: float


@dataclass(frozen=True)
class TrainingLog:
    """What a training took, and its losses averaged over every 50 steps."""

    wall_seconds: float
    cpu_seconds: float
    losses: list[dict[str, float]]


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of 0.8 M parameters; its vocabulary is padded, as in the real checkpoints."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=640,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def train_reference(
    model: Qwen2ForCausalLM, encoder: Encoder, recipe: ReferenceRecipe, exclude: Collection[str]
) -> TrainingLog:
    """Next-token cross-entropy: first on bare calculations, then on conversations, right and wrong."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rng = random.Random(recipe.seed)
    samples = ((sample,) for sample in make_samples(rng, recipe.wrong_share, exclude))
    drills = encoder.drill_batches(rng, recipe.drill_batch_size)
    stories = encoder.batches(samples, recipe.story_batch_size, rng)

    def losses(step: int) -> Losses:
        batch = next(drills if step < recipe.drill_steps else stories)
        logprobs = token_logprobs(model, batch.ids)
        response = -logprobs[batch.response].mean()
        if not batch.prompt.any():
            return {"loss": response}
        prompt = -logprobs[batch.prompt].mean()
        return {"loss": response + recipe.prompt_weight * prompt, "response": response, "prompt": prompt}

    return _train("reference", model, optimizers, recipe.drill_steps + recipe.story_steps, losses)


def train_policy(
    reference: Qwen2ForCausalLM, encoder: Encoder, recipe: PolicyRecipe, exclude: Collection[str]
) -> tuple[Qwen2ForCausalLM, TrainingLog]:
    """Cross-entropy of sigmoid(beta * sum of the response's log-ratios) with "the answer is correct".

    The anchor keeps the log-probs of the prompt, which says nothing about the outcome, near the reference's:
    the `card` convention adds them to every reward.
    """
    policy = copy.deepcopy(reference)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    rng = random.Random(recipe.seed)
    batches = encoder.batches(make_pairs(rng, exclude), recipe.pairs_per_batch, rng)

    def losses(step: int) -> Losses:
        batch = next(batches)
        with torch.no_grad():
            reference_logprobs = token_logprobs(reference, batch.ids)
        log_ratios = token_logprobs(policy, batch.ids) - reference_logprobs
        logits = recipe.beta * (log_ratios * batch.response).sum(dim=1)
        outcome = functional.binary_cross_entropy_with_logits(logits, batch.correct)
        anchor = log_ratios[batch.prompt].square().mean()
        return {
            "loss": outcome + recipe.prompt_anchor * anchor,
            "outcome": outcome,
            "anchor": anchor,
            "accuracy": ((logits > 0) == (batch.correct > 0)).float().mean(),
        }

    return policy, _train("policy", policy, [optimizer], recipe.steps, losses)


def _train(
    name: str,
    model: Qwen2ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    losses: Callable[[int], Losses],
) -> TrainingLog:
    """The loop: short warm-up, constant rate, linear decay over the second half; clipped gradients."""

    def rate(step: int) -> float:
        return min((step + 1) / WARM_UP, 1.0) * max(LAST_RATE, min(1.0, 2 * (steps - step) / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    history: list[dict[str, float]] = []
    recent: list[dict[str, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    model.train()
    for step in range(steps):
        values = losses(step)
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        recent.append({key: value.item() for key, value in values.items()})
        if len(recent) == LOG_EVERY:
            history.append({key: round(_mean(recent, key), 4) for key in recent[-1]})
            seconds = time.perf_counter() - wall
            print(f"{name} {step + 1}/{steps} {seconds:.0f} s {history[-1]}", file=sys.stderr)
            recent = []
    model.eval()
    return TrainingLog(round(time.perf_counter() - wall, 1), round(time.process_time() - cpu, 1), history)


def _mean(records: list[dict[str, float]], key: str) -> float:
    values = [record[key] for record in records if key in record]
    return sum(values) / len(values)

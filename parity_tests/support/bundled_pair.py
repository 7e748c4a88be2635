"""The bundled pair, pairs made from it that are nearer or mean nothing, and the problems to judge them on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from parity_tests.support import model_card as card
from parity_tests.support.fp64_reference import Numerics, Tokens, pair_logprobs
from parity_tests.support.random_pairs import Models
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2ForCausalLM

from stepscore.enums import Convention
from stepscore.evaluation.first_error import choose_threshold
from stepscore_export.fidelity import Ends, step_sums

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROBLEMS = EXAMPLES / "problems.jsonl"  # what is measured
THRESHOLD = (
    EXAMPLES / "threshold.jsonl"
)  # others: the threshold is chosen on them, bases are calibrated on them
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class BundledPair:
    """The bundled reference R and, from the bundled policy P, `R + nearness * (P - R)` plus noise, in fp32.

    noise: of every matrix, Gaussian, relative to the rms of the matrix in R; vectors have none.
    """

    name: str
    nearness: float
    noise: float = 0.0

    def write(self, folder: Path) -> Models:
        source = EXAMPLES / "pair"
        for name in ("policy", "reference"):
            shutil.copytree(source / name, folder / name)
        models = Models(folder / "policy", folder / "reference")
        policy, reference = (load_file(each / WEIGHTS) for each in (models.policy, models.reference))
        random = torch.Generator().manual_seed(1)
        moved = {}
        for name, weight in sorted(reference.items()):
            moved[name] = torch.lerp(weight, policy[name], self.nearness)  # to the bit P at 1, R at 0
            if weight.ndim == 2:
                size = self.noise * weight.square().mean().sqrt()
                moved[name] += size * torch.randn(weight.shape, generator=random)
        save_file(moved, models.policy / WEIGHTS, metadata={"format": "pt"})
        return models


@dataclass(frozen=True)
class TunedPair:
    """The bundled reference, and as its policy the same after `steps` steps of Adam on right solutions.

    A fine-tune of another kind than the bundled one, which learned to tell right from wrong.
    """

    name: str
    steps: int
    learning_rate: float

    def write(self, folder: Path) -> Models:
        for name in ("policy", "reference"):
            shutil.copytree(EXAMPLES / "pair" / "reference", folder / name)
        models = Models(folder / "policy", folder / "reference")
        problems = Problems.read(THRESHOLD, models)
        right = [
            torch.from_numpy(ids)
            for ids, label in zip(problems.ids, problems.labels, strict=True)
            if label < 0
        ]
        policy = Qwen2ForCausalLM.from_pretrained(models.reference, dtype=torch.float32)
        optimizer = torch.optim.Adam(policy.parameters(), lr=self.learning_rate)
        random = torch.Generator().manual_seed(1)
        for _ in range(self.steps):
            drawn = torch.randint(len(right), (4,), generator=random).tolist()
            losses = [policy(input_ids=right[index][None], labels=right[index][None]).loss for index in drawn]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
        weights = {name: weight.detach() for name, weight in policy.named_parameters()}
        save_file(weights, models.policy / WEIGHTS, metadata={"format": "pt"})
        return models


EXAMPLE = BundledPair("example", nearness=1.0)
NEAR = BundledPair("a tenth of its difference", nearness=0.1)
TUNED = TunedPair("tuned on right solutions", steps=60, learning_rate=2e-4)
NOISE = BundledPair("a random difference of 1 %", nearness=0.0, noise=0.01)


@dataclass(frozen=True)
class Problems:
    """What is scored: token ids, step ends of the card's convention, the first wrong step or -1."""

    ids: list[Tokens]
    step_ends: list[Ends]
    labels: list[int]

    @classmethod
    def read(cls, path: Path, models: Models, limit: int | None = None) -> Problems:
        tokenizer = AutoTokenizer.from_pretrained(models.policy)
        with path.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines][:limit]
        encoded = [card.encode(tokenizer, r["problem"], r["steps"], Convention.CARD) for r in records]
        return cls([e.ids for e in encoded], [e.step_ends for e in encoded], [r["label"] for r in records])


def fp64_threshold(models: Models, limit: int | None = None) -> float:
    """The threshold that finds the first wrong steps of the other problems best in fp64, in nats."""
    split = Problems.read(THRESHOLD, models, limit)
    truth = pair_logprobs(models.policy, models.reference, split.ids, Numerics.FP64)
    return choose_threshold(step_sums(truth, split.step_ends), split.labels)

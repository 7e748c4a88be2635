"""The fidelity table of a pair of checkpoints: every way of scoring it, against fp64 and PyTorch fp16.

    python -m parity_tests.table [--pair FOLDER] [--limit N] [--output RESULT.json]

FOLDER is laid out as examples/ is: pair/policy, pair/reference, problems.jsonl (what is measured) and
threshold.jsonl, whose fp64 rewards give the one threshold behind "first error" and F1. Prints Markdown.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from benchmarks.machine import facts
from parity_tests import card
from parity_tests.pairs import Models
from parity_tests.reference import Numerics, Tokens, pair_logprobs
from transformers import AutoTokenizer

from stepscore.artifact import Pair
from stepscore.choices import Convention, Precision
from stepscore.engine import Engine
from stepscore.select import choose_threshold, first_error, processbench_f1
from stepscore_export.fidelity import Ends, Fidelity, Scores, as_float64, fidelity, step_sums
from stepscore_export.options import ExportOptions
from stepscore_export.pair import export_pair

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


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


@dataclass(frozen=True)
class Row:
    """One way of scoring."""

    name: str
    against_fp64: Fidelity
    against_pytorch_fp16: Fidelity
    f1: float


def fp64_threshold(models: Models, split: Problems) -> float:
    """The threshold that finds the first wrong steps of `split` best, in nats."""
    truth = pair_logprobs(models.policy, models.reference, split.ids, Numerics.FP64)
    return choose_threshold(step_sums(truth, split.step_ends), split.labels)


def measure(models: Models, problems: Problems, threshold: float) -> list[Row]:
    """Score with every numerics of the reference and every precision of stepscore; fp64 comes first."""
    scores: dict[str, Scores] = {
        numerics.value: pair_logprobs(models.policy, models.reference, problems.ids, numerics)
        for numerics in Numerics
    }
    for precision in Precision:
        scores[f"stepscore {precision}"] = stepscore_scores(models, precision, problems.ids)
    truth, fp16 = scores[Numerics.FP64.value], scores[Numerics.PYTORCH_FP16.value]
    return [
        Row(
            name,
            against_fp64=fidelity(values, truth, problems.step_ends, threshold),
            against_pytorch_fp16=fidelity(values, fp16, problems.step_ends, threshold),
            f1=_f1(values, problems, threshold),
        )
        for name, values in scores.items()
    ]


def stepscore_scores(models: Models, precision: Precision, sequences: Sequence[Tokens]) -> Scores:
    """Export at one precision and score with the runtime, one sequence at a time."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pair"
        export_pair(models.policy, models.reference, output, ExportOptions(precision=precision))
        engine = Engine(Pair.open(output))
        scores = as_float64([engine.logprobs([tokens])[0] for tokens in sequences])
        engine.close()
    return scores


def _f1(scores: Scores, problems: Problems, threshold: float) -> float:
    found = [first_error(row, threshold) for row in step_sums(scores, problems.step_ends)]
    return processbench_f1(found, problems.labels).f1


def markdown(rows: Iterable[Row]) -> str:
    """The table; shares and relative errors in percent, log-probs in nats."""
    lines = [
        "| scored by | log-prob error, rms / max | log-ratio error | step reward error | same sign "
        "| same first error | F1 | log-ratio error vs PyTorch fp16 | same sign | same first error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        a, b = row.against_fp64, row.against_pytorch_fp16
        cells = [
            row.name,
            f"{a.logprob_rms:.1e} / {a.logprob_max:.1e}",
            *(f"{share:.2%}" for share in (a.ratio_error, a.step_error, a.step_signs, a.first_errors)),
            f"{row.f1:.3f}",
            *(f"{share:.2%}" for share in (b.ratio_error, b.step_signs, b.first_errors)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def counts(problems: Problems) -> dict[str, int]:
    """What was measured."""
    return {
        "num_sequences": len(problems.ids),
        "num_tokens": sum(len(tokens) for tokens in problems.ids),
        "num_steps": sum(len(ends) for ends in problems.step_ends),
    }


@click.command()
@click.option("--pair", "folder", type=click.Path(path_type=Path), default=EXAMPLES, show_default=True)
@click.option("--limit", type=int, help="Measure on so many problems only.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON, too.")
def main(folder: Path, limit: int | None, output: Path | None) -> None:
    """Measure one pair of checkpoints and print the table."""
    torch.set_num_threads(1)  # a second thread only slows down sequences and models this small
    models = Models(folder / "pair" / "policy", folder / "pair" / "reference")
    threshold = fp64_threshold(models, Problems.read(folder / "threshold.jsonl", models))
    problems = Problems.read(folder / "problems.jsonl", models, limit)
    rows = measure(models, problems, threshold)
    click.echo(markdown(rows))
    if output is not None:
        capability = torch.backends.cpu.get_cpu_capability()  # decides what fp16 and bf16 are in PyTorch
        result = {
            "machine": facts() | {"torch_cpu_capability": capability},
            **counts(problems),
            "threshold_nats": threshold,
            "rows": [asdict(row) for row in rows],
        }
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

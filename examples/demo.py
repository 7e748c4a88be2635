"""The main job, end to end, on the bundled pair: export it, score real solutions, mark the wrong steps.

    python examples/demo.py            writes out/demo/fp32 and out/demo/int8

Needs stepscore[cpu,export]; no PyTorch, no download. The threshold is chosen on threshold.jsonl, the figures
are those of problems.jsonl, which shares no problem with it or with the training text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stepscore.artifact.pair import Pair
from stepscore.cli.tables import console, print_steps
from stepscore.enums import Precision
from stepscore.evaluation.first_error import ProcessBench, choose_threshold, first_error, processbench_f1
from stepscore.results import Result
from stepscore.scorer import Scorer
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair

EXAMPLES = Path(__file__).parent
OUTPUT = EXAMPLES.parent / "out" / "demo"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Run:
    """What one precision gave."""

    pair: Pair
    results: list[Result]
    threshold: float
    predictions: list[int]
    judged: ProcessBench
    tokens_per_second: float


def main() -> None:
    """Export at two precisions, score both splits, print what a person wants to see."""
    problems, split = (_read(EXAMPLES / name) for name in ("problems.jsonl", "threshold.jsonl"))
    beta = json.loads((EXAMPLES / "training.json").read_text())["recipes"]["policy"]["beta"]
    runs = {
        precision: _run(precision, beta, problems, split) for precision in (Precision.FP32, Precision.INT8)
    }
    screen = console(sys.stdout)
    _print_solutions(screen, problems, runs[Precision.INT8])
    _print_summary(screen, runs, [record["label"] for record in problems])


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(precision: Precision, beta: float, problems: list[dict], split: list[dict]) -> Run:
    pair = export_pair(
        EXAMPLES / "pair" / "policy",
        EXAMPLES / "pair" / "reference",
        OUTPUT / precision,
        ExportOptions(precision=precision, beta=beta),
        force=True,
    )
    with Scorer.load(pair.path) as scorer:
        scores = [result.step_rewards for result in scorer.score(split)]
        threshold = choose_threshold(scores, [record["label"] for record in split])
        started = time.perf_counter()
        results = scorer.score(problems)
        seconds = time.perf_counter() - started
    predictions = [first_error(result.step_rewards, threshold) for result in results]
    judged = processbench_f1(predictions, [record["label"] for record in problems])
    rate = sum(result.num_tokens for result in results) / seconds
    return Run(pair, results, threshold, predictions, judged, rate)


def _print_solutions(screen: Console, problems: list[dict], run: Run) -> None:
    wrong = [index for index, record in enumerate(problems) if record["label"] >= 0]
    right = [index for index, record in enumerate(problems) if record["label"] < 0]
    for index in [*wrong[: SHOWN - 1], *right[:1]]:
        record = problems[index]
        label = record["label"]
        screen.print(f"\n[bold]{record['problem']}[/bold]")
        print_steps(screen, record["steps"], run.results[index], run.threshold, "int8, card convention")
        screen.print(
            f"truth: {'every step is right' if label < 0 else f'step {label + 1} is the first wrong one'}"
        )


def _print_summary(screen: Console, runs: dict[Precision, Run], labels: Sequence[int]) -> None:
    erroneous = sum(label >= 0 for label in labels)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"First wrong step of {len(labels)} test problems ({erroneous} of them wrong)",
        title_justify="left",
    )
    for name in ("precision", "pair", "F1", "found in wrong", "right left alone", "as fp32", "tokens/s"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    first = next(iter(runs.values()))
    for precision, run in runs.items():
        same = sum(a == b for a, b in zip(run.predictions, first.predictions, strict=True))
        table.add_row(
            precision,
            f"{run.pair.num_bytes() / 1e6:.1f} MB",
            f"{run.judged.f1:.3f}",
            f"{run.judged.accuracy_error:.1%}",
            f"{run.judged.accuracy_correct:.1%}",
            f"{same / len(labels):.1%}",
            f"{run.tokens_per_second:,.0f}",
        )
    screen.print()
    screen.print(table)
    folders = ", ".join(str(run.pair.path.relative_to(EXAMPLES.parent)) for run in runs.values())
    screen.print(f"The pairs are {folders}.")


if __name__ == "__main__":
    main()

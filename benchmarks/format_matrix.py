"""Measure every format at every precision: disk, memory, speed and fidelity in one table.

    make bench-matrix                  Qwen2.5-1.5B's shape, 2 layers; the bundled pair's 400 problems
    make bench-matrix FLAGS=--quick    a tiny model, four problems, a row of each format

Fidelity is that of the bundled pair against fp64 (parity_tests/support/fp64_reference.py), at the threshold
that is best in fp64 on other problems. Disk, memory and speed are those of synthetic checkpoints: every row
is a separate process with two threads, started when the one before has ended; it loads both models and scores
the same solution, once to warm up and then `repeats` times. Pairs are exported on the command line; a row
whose export is rejected is skipped, with the reason in the result.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Checkpoints, Contender
from benchmarks.peers.stepscore_pair import StepscorePair
from benchmarks.peers.transformers_card import TransformersCard
from benchmarks.support.formats import ROWS, ExportedRow, ExportRejected, PytorchRow, first_rows
from benchmarks.support.options import add_shape, benchmark_parser, chosen_shape
from benchmarks.support.rates import rounded
from benchmarks.support.results import logged, write_result
from benchmarks.support.shapes import ModelShape, shape_facts, write_models
from benchmarks.support.worker import Skipped, take_turns
from benchmarks.support.workloads import Workload, solution

from stepscore.artifact.pair import Pair
from stepscore.bench import rate
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint

if TYPE_CHECKING:
    from benchmarks.support.decisions import Decisions

THREADS = 2
TOKENS = 512
QUICK_PROBLEMS = 4


def main() -> None:
    """Measure all rows; write results/matrix.json."""
    parser = benchmark_parser(__doc__)
    add_shape(parser, ModelShape.QWEN_1_5B, layers=2)
    parser.add_argument("--limit", type=int, help="measure fidelity on the first N problems (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    shape = chosen_shape(options)
    config = shape.with_layers(options.layers)
    # Not above: timed processes import this module, and its imports count in their memory.
    from benchmarks.support.decisions import Decisions  # noqa: PLC0415

    decisions = Decisions.of(QUICK_PROBLEMS if options.quick else options.limit)
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        with Checkpoint.open(models.policy) as policy:
            workload = solution(prompt_template(policy)[1], config.vocab_size, TOKENS)
        result = {
            "quick": options.quick,
            "threads": THREADS,
            "repeats": repeats,
            "problems": len(decisions.problems.ids),
            **shape_facts(shape, config),
            **workload.facts(),
        }
        rows: list[dict[str, Any]] = []
        for each in (
            first_rows() if options.quick else ROWS
        ):  # written after every row: a failure loses nothing that was measured
            rows.append(logged(_measured(each, decisions, models, workload, repeats)))
            path = write_result("matrix", {**result, "rows": rows}, quick=options.quick)
    print(path)


def _measured(
    row: ExportedRow | PytorchRow, decisions: Decisions, models: Checkpoints, workload: Workload, repeats: int
) -> dict[str, Any]:
    """Return the row's figures, or why it was skipped."""
    named = {"format": row.family, "precision": row.name}
    with tempfile.TemporaryDirectory(dir=models.scratch) as folder:
        try:
            errors = decisions.errors_of(row, Path(folder))
            contender, disk_bytes = _contender(row, models, Path(folder) / "pair")
        except ExportRejected as rejected:
            return named | {"skipped": str(rejected)}
        (turns,) = take_turns([contender], models, workload.sequences, THREADS, repeats)
    if isinstance(turns, Skipped):
        return named | {"skipped": turns.reason}
    return {
        **named,
        "disk_mb": round(disk_bytes / 1e6),
        "peak_mb": turns.peak_mb,
        "pair_tokens_per_second": rounded(rate(workload.num_tokens, turns.seconds)),
        **errors,
    }


def _contender(row: ExportedRow | PytorchRow, models: Checkpoints, output: Path) -> tuple[Contender, int]:
    """Return the contender that is timed, and its bytes on disk; checkpoints count at their precision."""
    if isinstance(row, PytorchRow):
        with Checkpoint.open(models.policy) as checkpoint:
            num_bytes = 2 * row.bytes_per_weight * checkpoint.parameters()
        return TransformersCard(THREADS, row.precision), num_bytes
    pair = Pair.open(row.export(models, output))
    return StepscorePair(row.name, pair.path, THREADS), pair.num_bytes()


if __name__ == "__main__":
    main()

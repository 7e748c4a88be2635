"""Every format at every precision: disk, memory, speed and fidelity in one table.

    make bench-matrix                  Qwen2.5-1.5B's shape, 2 layers; the bundled pair's 400 problems
    make bench-matrix FLAGS=--quick    a tiny model and four problems: does it all work

Fidelity is that of the bundled pair, against fp64 (parity_tests/reference.py), at the one threshold that is
best in fp64 on other problems. Size, memory and speed are those of synthetic checkpoints: every row is a
process of its own with two threads, after all rows before it have ended; it loads both models and scores the
same solution, once to warm up and then `repeats` times. Pairs are exported by the command line, as anybody
would; a row whose export is refused is skipped, with the reason in the result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Contender, Models
from benchmarks.peers.ours import Ours
from benchmarks.peers.transformers_card import TransformersCard
from benchmarks.support.formats import ROWS, Exported, Loaded, Refused
from benchmarks.support.machine import QUICK_RESULTS, RESULTS, write_result
from benchmarks.support.rates import rounded
from benchmarks.support.shapes import Shape, write_models
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, four problems, one repeat")
    parser.add_argument("--shape", type=Shape, choices=list(Shape), default=Shape.QWEN_1_5B)
    parser.add_argument("--layers", type=int, default=2, help="fewer layers than the shape has")
    parser.add_argument("--limit", type=int, help="problems that fidelity is measured on (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where checkpoints and pairs go")
    options = parser.parse_args()
    shape = Shape.QUICK if options.quick else options.shape
    config = shape.with_layers(options.layers)
    # Not above: what this module imports is in every timed process, and in its memory.
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
            "shape": {"name": shape.value, **asdict(config)},
            "all_layers": shape.config.num_hidden_layers,
            **workload.facts(),
        }
        results = QUICK_RESULTS if options.quick else RESULTS
        rows: list[dict[str, Any]] = []
        for each in ROWS:  # what is measured stands, should a later row fail
            rows.append(_measured(each, decisions, models, workload, repeats))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            path = write_result("matrix", {**result, "rows": rows}, results)
    print(path)


def _measured(
    row: Exported | Loaded, decisions: Decisions, models: Models, workload: Workload, repeats: int
) -> dict[str, Any]:
    """Return the row's figures, or why there are none."""
    named = {"format": row.family, "precision": row.name}
    with tempfile.TemporaryDirectory(dir=models.scratch) as folder:
        try:
            judged = decisions.judge(row, Path(folder))
            contender, disk_bytes = _contender(row, models, Path(folder) / "pair")
        except Refused as refused:
            return named | {"skipped": str(refused)}
        (turns,) = take_turns([contender], models, workload.sequences, THREADS, repeats)
    if isinstance(turns, Skipped):
        return named | {"skipped": turns.reason}
    return {
        **named,
        "disk_mb": round(disk_bytes / 1e6),
        "peak_mb": turns.peak_mb,
        "pair_tokens_per_second": rounded(rate(workload.num_tokens, turns.seconds)),
        **judged,
    }


def _contender(row: Exported | Loaded, models: Models, output: Path) -> tuple[Contender, int]:
    """Return what is timed, and its bytes on the disk; of checkpoints, those at their precision."""
    if isinstance(row, Loaded):
        with Checkpoint.open(models.policy) as checkpoint:
            num_bytes = 2 * row.bytes_a_weight * checkpoint.parameters()
        return TransformersCard(THREADS, row.precision), num_bytes
    pair = Pair.open(row.export(models, output))
    return Ours(row.name, pair.path, THREADS), pair.num_bytes()


if __name__ == "__main__":
    main()

"""Measure the error of every form and of PyTorch against fp64, on five pairs.

    make bench-fidelity                       all problems
    make bench-fidelity FLAGS="--limit 20"    the first 20 problems of each pair
    make bench-fidelity FLAGS="--pair-checkpoints POLICY REFERENCE"    two Hugging Face folders
    make bench-fidelity FLAGS=--quick         the bundled pair, four problems and forms, to see that it works

The pairs: the bundled one; its reference with a tenth of the difference; its reference tuned in another way;
its reference with a random difference; and a random network with an untied head. The last two are worst
cases without a bound: rounding spares no part of a random difference, and log-probs of a random network are
chaotic (its checkpoints are bf16, so 16-bit storage rounds nothing there). Decisions (step rewards, first
error, F1) are those of the bundled pair, at the threshold that is best in fp64 on other problems. Prints the
tables as Markdown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch
from benchmarks.reporting.fidelity_tables import fidelity as fidelity_tables
from benchmarks.reporting.table import markdown
from benchmarks.support.options import benchmark_parser
from benchmarks.support.results import write_result
from parity_tests.support.bundled_pair import (
    EXAMPLE,
    NEAR,
    NOISE,
    PROBLEMS,
    THRESHOLD,
    TUNED,
    Problems,
    fp64_threshold,
)
from parity_tests.support.fp64_reference import Numerics, num_parameters, pair_logprobs
from parity_tests.support.pair_cache import Source, Workshop, scored
from parity_tests.support.random_pairs import UNTIED, Models
from parity_tests.support.storage_forms import (
    BF16,
    FP16,
    FP32,
    INT4,
    INT4_INT4,
    INT8,
    INT8_INT2,
    INT8_INT4,
    INT8_INT8,
    INTEGER,
    Storage,
    bits_a_pair,
)

from benchmarks import checkpoint_fidelity
from stepscore.artifact.pair import Pair
from stepscore.evaluation.first_error import first_error, processbench_f1
from stepscore_export.fidelity import FidelityMetrics, Scores, fidelity, step_sums

STORAGES = (
    FP32,
    FP16,
    BF16,
    INT8,
    INT4,
    INT8_INT4,
    INT8_INT4.rotated(),
    INT8_INT4.calibrated(),
    INT8_INT4.calibrated_alike(),
    INT8_INT8,
    INTEGER.rotated(rotation=False).without_prefix(),
    INTEGER.rotated(rotation=False),
    INTEGER,
    INTEGER.calibrated(),
    INTEGER.calibrated_alike(),
    INT8_INT2,
    INT4_INT4,
    INT4_INT4.rotated(),
    INT4_INT4.calibrated(),
    INT4_INT4.calibrated_alike(),
)
QUICK_STORAGES = (FP32, INT8_INT4, INTEGER, INT4_INT4)
NUM_PROCESSES = 2  # nothing is timed
QUICK_PROBLEMS = 4
PYTORCH = {  # bits per weight
    Numerics.PYTORCH_FP32: 32,
    Numerics.PYTORCH_FP16: 16,
    Numerics.PYTORCH_FP16_LOGITS32: 16,
    Numerics.PYTORCH_BF16: 16,
    Numerics.PYTORCH_BF16_LOGITS32: 16,
}


@dataclass(frozen=True)
class Column:
    """A pair, and the number of problems it is measured on, encoded with its own tokenizer."""

    name: str
    source: Source
    num_problems: int


COLUMNS = (
    Column("example", EXAMPLE, 400),
    Column("tenth", NEAR, 160),
    Column("tuned", TUNED, 160),
    Column("noise", NOISE, 160),
    Column("chaos", UNTIED, 20),
)
DECIDED = COLUMNS[0]


@dataclass(frozen=True)
class StoredSize:
    """Bits of codes for one weight of each model; megabytes of the whole pair on disk."""

    bits_a_pair: float
    megabytes: float


@dataclass(frozen=True)
class Way:
    """One way of scoring one pair; fp64 has no size, since it is the truth and not stored."""

    size: StoredSize | None
    against_fp64: FidelityMetrics
    f1: float | None


@dataclass(frozen=True)
class Measured:
    """One pair: |policy - reference| / |reference|, the threshold in nats, and each way by name."""

    distance: float
    threshold: float | None
    ways: dict[str, Way]


def measure(column: Column, limit: int | None, scratch: Path | None, quick: bool) -> Measured:
    """Score one pair in every way, in a separate folder; only DECIDED has an F1.

    A quick run has few forms, and its threshold is chosen on as few problems.
    """
    storages = QUICK_STORAGES if quick else STORAGES
    torch.set_num_threads(1)  # a second thread only slows down sequences and models this small
    with tempfile.TemporaryDirectory(dir=scratch) as folder, closing(Workshop(Path(folder))) as workshop:
        models = workshop.models(column.source)
        problems = Problems.read(PROBLEMS, models, min(limit or column.num_problems, column.num_problems))
        truth = pair_logprobs(models.policy, models.reference, problems.ids, Numerics.FP64)
        threshold = fp64_threshold(models, limit if quick else None) if column == DECIDED else None
        sizes = dict(_sizes(workshop, models, storages))
        ways = {
            name: Way(
                sizes.get(name),
                fidelity(scores, truth, problems.step_ends, threshold),
                None if threshold is None else _f1(scores, problems, threshold),
            )
            for name, scores in _all_scores(workshop, models, problems, truth, storages)
        }
        distance = Pair.open(workshop.exported(models, FP32.options)).manifest.distance.overall
    return Measured(distance, threshold, ways)


def _all_scores(
    workshop: Workshop, models: Models, problems: Problems, truth: Scores, storages: Sequence[Storage]
) -> Iterator[tuple[str, Scores]]:
    yield Numerics.FP64.value, truth
    for numerics in PYTORCH:
        yield numerics.value, pair_logprobs(models.policy, models.reference, problems.ids, numerics)
    for storage in storages:
        engine = workshop.engine(models, storage.options, calibration=storage.calibration)
        yield _named(storage), scored(engine, problems.ids)


def _sizes(
    workshop: Workshop, models: Models, storages: Sequence[Storage]
) -> Iterator[tuple[str, StoredSize]]:
    for numerics, bits in PYTORCH.items():
        megabytes = sum(map(num_parameters, (models.policy, models.reference))) * bits / 8e6
        yield numerics.value, StoredSize(2 * bits, megabytes)
    for storage in storages:
        pair = Pair.open(workshop.exported(models, storage.options, storage.calibration))
        yield _named(storage), StoredSize(bits_a_pair(pair, models.reference), pair.num_bytes() / 1e6)


def _named(storage: Storage) -> str:
    return f"stepscore {storage.name}"


def _f1(scores: Scores, problems: Problems, threshold: float) -> float:
    found = [first_error(row, threshold) for row in step_sums(scores, problems.step_ends)]
    return processbench_f1(found, problems.labels).f1


def main() -> None:
    """Measure all pairs; write results/fidelity.json and print its tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--limit", type=int, help="measure on the first N problems only")
    parser.add_argument(
        "--pair-checkpoints",
        nargs=2,
        type=Path,
        metavar=("POLICY", "REFERENCE"),
        help="measure real checkpoints: two Hugging Face folders (benchmarks/checkpoint_fidelity.py)",
    )
    parser.add_argument(
        "--forms", nargs="*", help="with --pair-checkpoints: measure these forms only, by name"
    )
    parser.add_argument(
        "--model", help="with --pair-checkpoints: what the reference is (default: its folder)"
    )
    parser.add_argument(
        "--name", help="with --pair-checkpoints: the result's name (default: the policy's folder)"
    )
    options = parser.parse_args()
    if options.pair_checkpoints is not None:
        print(checkpoint_fidelity.run(options))
        return
    limit = QUICK_PROBLEMS if options.quick else options.limit
    columns = [DECIDED] if options.quick else COLUMNS
    with ProcessPoolExecutor(NUM_PROCESSES, get_context("spawn")) as pool:
        measured = list(pool.map(measure, columns, *map(repeat, (limit, options.scratch, options.quick))))
    result = {
        "quick": options.quick,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),  # decides kernels of fp16, bf16
        "calibrated_alike_on": THRESHOLD.name,
        "pairs": {column.name: asdict(each) for column, each in zip(columns, measured, strict=True)},
    }
    print("\n\n".join(map(markdown, fidelity_tables({"fidelity": result}))))
    print(write_result("fidelity", result, quick=options.quick))


if __name__ == "__main__":
    main()

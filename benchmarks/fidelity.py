"""The fidelity table: every way of scoring a pair, against fp64, on five pairs.

    python -m benchmarks.fidelity [--limit N] [--output RESULT.json] [--quick]

The pairs: the bundled one; its reference with a tenth of the difference; its reference tuned in another way;
its reference with a random difference; and a random network with an untied head. The last two are honest
worst cases and nothing is asked of them: a difference that is noise has no part that rounding spares, and the
log-probs of the random network are chaotic, whatever moves its weights moves them far (its checkpoints are
bf16, so that storage in 16 bits rounds nothing there). Decisions (step rewards, first error, F1) are those of
the bundled pair, by the one threshold that is best in fp64 on other problems. Prints Markdown.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import click
import torch
from benchmarks.support.machine import QUICK_RESULTS, facts
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
    INT8_INT4.calibrated(),
    INT8_INT8,
    INTEGER,
    INTEGER.calibrated(),
    INT8_INT2,
    INT4_INT4,
    INT4_INT4.calibrated(),
)
NUM_PROCESSES = 2  # nothing is timed
QUICK_PROBLEMS = 4
PYTORCH = {  # bits of a weight
    Numerics.PYTORCH_FP32: 32,
    Numerics.PYTORCH_FP16: 16,
    Numerics.PYTORCH_FP16_LOGITS32: 16,
    Numerics.PYTORCH_BF16: 16,
    Numerics.PYTORCH_BF16_LOGITS32: 16,
}


@dataclass(frozen=True)
class Column:
    """A pair, and how many of the problems it is measured on, encoded by its own tokenizer."""

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
class Size:
    """Bits of codes for one weight of each model; megabytes of the whole pair on disk."""

    bits_a_pair: float
    megabytes: float


@dataclass(frozen=True)
class Way:
    """One way of scoring one pair. Of fp64 there is no size: nobody stores it."""

    size: Size | None
    against_fp64: FidelityMetrics
    f1: float | None


@dataclass(frozen=True)
class Measured:
    """One pair: |policy - reference| / |reference|, the threshold in nats, and each way by its name."""

    distance: float
    threshold: float | None
    ways: dict[str, Way]


def measure(column: Column, limit: int | None) -> Measured:
    """Score one pair in every way, in a folder of its own; elsewhere than on DECIDED, without F1."""
    torch.set_num_threads(1)  # a second thread only slows down sequences and models this small
    with tempfile.TemporaryDirectory() as folder, closing(Workshop(Path(folder))) as workshop:
        models = workshop.models(column.source)
        problems = Problems.read(PROBLEMS, models, min(limit or column.num_problems, column.num_problems))
        truth = pair_logprobs(models.policy, models.reference, problems.ids, Numerics.FP64)
        threshold = fp64_threshold(models) if column == DECIDED else None
        sizes = dict(_sizes(workshop, models))
        ways = {
            name: Way(
                sizes.get(name),
                fidelity(scores, truth, problems.step_ends, threshold),
                None if threshold is None else _f1(scores, problems, threshold),
            )
            for name, scores in _all_scores(workshop, models, problems, truth)
        }
        distance = Pair.open(workshop.exported(models, FP32.options)).manifest.distance.overall
    return Measured(distance, threshold, ways)


def _all_scores(
    workshop: Workshop, models: Models, problems: Problems, truth: Scores
) -> Iterator[tuple[str, Scores]]:
    yield Numerics.FP64.value, truth
    for numerics in PYTORCH:
        yield numerics.value, pair_logprobs(models.policy, models.reference, problems.ids, numerics)
    for storage in STORAGES:
        engine = workshop.engine(models, storage.options, calibration=storage.calibration)
        yield _named(storage), scored(engine, problems.ids)


def _sizes(workshop: Workshop, models: Models) -> Iterator[tuple[str, Size]]:
    for numerics, bits in PYTORCH.items():
        megabytes = sum(map(num_parameters, (models.policy, models.reference))) * bits / 8e6
        yield numerics.value, Size(2 * bits, megabytes)
    for storage in STORAGES:
        pair = Pair.open(workshop.exported(models, storage.options, storage.calibration))
        yield _named(storage), Size(bits_a_pair(pair, models.reference), pair.num_bytes() / 1e6)


def _named(storage: Storage) -> str:
    return f"stepscore {storage.name}"


def _f1(scores: Scores, problems: Problems, threshold: float) -> float:
    found = [first_error(row, threshold) for row in step_sums(scores, problems.step_ends)]
    return processbench_f1(found, problems.labels).f1


def markdown(table: Mapping[str, Measured]) -> str:
    """The table; shares and relative errors in percent."""
    headings = ["scored by", "bits a pair of weights", "MB"]
    headings += [f"log-ratio error, {name} {each.distance:.2%}" for name, each in table.items()]
    headings += ["step reward error", "same sign", "same first error", "F1"]
    rows = [_cells(name, [each.ways[name] for each in table.values()]) for name in table[DECIDED.name].ways]
    return "\n".join(map(_line, [headings, ["---"] * len(headings), *rows]))


def _cells(name: str, ways: Sequence[Way]) -> Iterator[str]:
    size, decided = ways[0].size, ways[0].against_fp64
    yield name
    yield from ("", "") if size is None else (f"{size.bits_a_pair:.1f}", f"{size.megabytes:.1f}")
    yield from (f"{way.against_fp64.ratio_error:.2%}" for way in ways)
    yield from (f"{each:.2%}" for each in (decided.step_error, decided.step_signs, decided.first_errors))
    yield f"{ways[0].f1:.3f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--limit", type=int, help="Measure on so many problems only.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON, too.")
@click.option("--quick", is_flag=True, help="The bundled pair, four problems, JSON aside: does it work.")
def main(limit: int | None, output: Path | None, quick: bool) -> None:
    """Measure all pairs and print the table."""
    if quick:
        limit, output = QUICK_PROBLEMS, QUICK_RESULTS / "fidelity.json"
    columns = [DECIDED] if quick else COLUMNS
    with ProcessPoolExecutor(NUM_PROCESSES, get_context("spawn")) as pool:
        measured = list(pool.map(measure, columns, repeat(limit)))
    table = {column.name: each for column, each in zip(columns, measured, strict=True)}
    click.echo(markdown(table))
    if output is not None:
        capability = torch.backends.cpu.get_cpu_capability()  # decides what fp16 and bf16 are in PyTorch
        result = {
            "machine": facts() | {"torch_cpu_capability": capability},
            "quick": quick,
            "calibrated_on": THRESHOLD.name,
            "pairs": {name: asdict(each) for name, each in table.items()},
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

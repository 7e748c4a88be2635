"""Score a Ray Dataset on a cluster, and write it to Parquet so that a run that failed goes on where it was.

    solutions = ray.data.read_parquet("solutions")
    scored = score_dataset(solutions, "pair", concurrency=8, num_gpus=1)
    write_scores(scored, "scored")

Each actor holds a pair. Rows of one problem meet in one batch, where their common prefixes are computed once.
`write_scores` sets Ray's checkpoint by id; ray_checkpoint.py says what it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from stepscore.artifact.pair import Pair
from stepscore.enums import Convention
from stepscore.errors import DoesNotFit
from stepscore.extras import naming_extras
from stepscore.integrations.arrow_tables import TableScorer, checked_ids, problem_keys, records_of
from stepscore.integrations.ray_checkpoint import Run, write_scores
from stepscore.records import BY_ACCEPTED_NAMES, Reading

with naming_extras():
    import pyarrow as pa

__all__ = ["Grouping", "PairActor", "score_dataset", "write_scores"]

BATCH_ROWS = 512
MOST_BATCHES = 4096
"""Most batches of a shuffle: Ray keeps a part of each for every block that it reads."""

PROBLEM_KEY = "__stepscore_problem"
"""Column of the 64-bit keys by which rows are shuffled; dropped before scoring."""

RAYS_CORES = 2
"""Cores that actors must leave: for tasks that read and write, and for the filter of ids that are done."""


class Grouping(StrEnum):
    """How the rows of one problem come into one batch."""

    SHUFFLE = "shuffle"
    """A hash shuffle by problem: all of the input is read, and moved between machines, before scoring."""

    ADJACENT = "adjacent"
    """They are neighbours in the files: batches are cut from these, and one problem at each cut is split."""


def score_dataset(
    ds: Any,
    pair: str | Path,
    *,
    id_column: str = "id",
    grouping: Grouping = Grouping.SHUFFLE,
    batch_rows: int = BATCH_ROWS,
    num_batches: int | None = None,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    reading: Reading = BY_ACCEPTED_NAMES,
    **options: Any,
) -> Any:
    """Return the ray.data.Dataset with the columns of a TableScorer; nothing is scored before it is consumed.

    `concurrency` is the number of actors, or the least and the most; each has `num_cpus` cores, `num_gpus`
    devices and a pair of its own. `options` are those of Scorer.load; `threads` defaults to `num_cpus`, at
    least 1. Where several actors share a machine, give each its `memory_limit`: else each plans with all that
    is free. Ray starts a dead actor again and repeats its batch, without limit.

    A shuffle makes `num_batches` batches of whole problems; without a number, as many as give `batch_rows`
    rows each, and at most MOST_BATCHES. For that the rows of `ds` are counted: from the metadata of Parquet
    files, else by reading the input once more.

    Raises an ArtifactError where the pair cannot be opened here, DoesNotFit where the actors would leave Ray
    fewer than RAYS_CORES cores. A missing or null id is a SourceError of the run.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}; it must be at least 1")
    with naming_extras():
        from ray.data import ActorPoolStrategy  # noqa: PLC0415
    fingerprint = _fingerprint(pair, options)
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    _check_room(least * num_cpus)
    batches: int | None = batch_rows
    if grouping is Grouping.SHUFFLE:
        keyed = ds.map_batches(
            partial(with_problem_keys, id_column=id_column, reading=reading),
            batch_size=None,
            batch_format="pyarrow",
        )
        ds = keyed.repartition(num_batches or batches_for(ds.count(), batch_rows), keys=[PROBLEM_KEY])
        batches = None  # a batch is a block of the shuffle
    scored = ds.map_batches(
        PairActor,
        fn_constructor_args=(str(pair),),
        fn_constructor_kwargs={
            "id_column": id_column,
            "reading": reading,
            "fingerprint": fingerprint,
            "threads": max(1, int(num_cpus)),
            **options,
        },
        batch_size=batches,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    Run(id_column, fingerprint).note(scored)
    return scored


class PairActor(TableScorer):
    """A TableScorer for `map_batches`; it drops the column by which `score_dataset` shuffles."""

    def __call__(self, table: Any) -> Any:
        """Return the table with the rewards or the error of each row."""
        return super().__call__(table.select([name for name in table.column_names if name != PROBLEM_KEY]))


def with_problem_keys(table: Any, id_column: str, reading: Reading) -> Any:
    """Return the table with the column PROBLEM_KEY, int64; raise SourceError for a missing or null id."""
    checked_ids(table, id_column)
    keys = problem_keys(records_of(table, reading))
    return table.append_column(PROBLEM_KEY, pa.array(keys, pa.int64()))


def batches_for(num_rows: int, batch_rows: int) -> int:
    """Return the number of batches of a shuffle, at least 1.

    >>> batches_for(200, 32), batches_for(0, 512), batches_for(100_000_000, 512)
    (7, 1, 4096)
    """
    return min(max(1, -(-num_rows // batch_rows)), MOST_BATCHES)


def _fingerprint(pair: str | Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Return what Scorer.fingerprint will on every machine."""
    opened = Pair.open(pair)
    beta = options.get("beta")
    return {
        "pair": opened.fingerprint,
        "beta": repr(opened.manifest.beta if beta is None else beta),
        "convention": Convention(options.get("convention", Convention.CARD)).value,
    }


def _check_room(held: float) -> None:
    """Raise DoesNotFit where actors that hold this many cores leave fewer than RAYS_CORES."""
    import ray  # noqa: PLC0415

    there = ray.cluster_resources().get("CPU", 0)
    if held + RAYS_CORES > there:
        raise DoesNotFit(
            f"the actors would hold {held:g} of the {there:g} cores of the cluster; {RAYS_CORES} must be "
            "left, or a run waits for ever: for tasks that read and write, and for the filter of ids done",
            hint="lower num_cpus (0 on one small machine) or concurrency; where the cluster grows, give "
            "concurrency=(1, MOST)",
        )

"""Write scored rows to Parquet, each id once over all runs: Ray's checkpoint by id, and what it lacks.

Ray Data 2.60 writes the ids of a file as pending, then the file, then renames the ids to committed. The next
run deletes the files of pending ids and leaves out the input rows whose id is committed. Ray does not notice

- a plan that does not begin with a read: nothing is left out, and every row is written again;
- an output whose ids were deleted, or ids whose output was moved: rows are written twice, or never;
- another pair, beta or convention: one output with rewards of two kinds.

Each of these is an error here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stepscore.errors import NotScored, OutputExists, ResumeMismatch, SourceError
from stepscore.extras import naming_extras
from stepscore.integrations.arrow_tables import METADATA_KEY
from stepscore.jobs.provenance import Provenance

with naming_extras():
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSelector, FileSystem, FileType

PENDING = ".pending.parquet"
PARQUET = ".parquet"
_CONFIG = "stepscore.run"


@dataclass(frozen=True, slots=True)
class Run:
    """What writing must know of the scoring: the column of ids, and the fingerprint of pair and options."""

    id_column: str
    fingerprint: Mapping[str, str]

    def note(self, ds: Any) -> None:
        """Keep it in the context of a dataset, which those made of it copy."""
        ds.context.set_config(_CONFIG, self)

    @classmethod
    def of(cls, ds: Any) -> Run:
        """Return that of a dataset; raise NotScored."""
        run = ds.context.get_config(_CONFIG)
        if run is None:
            raise NotScored("the dataset is not one that `score_dataset` returned, or made of one")
        assert isinstance(run, cls)
        return run


def write_scores(
    scored: Any, output: str, *, checkpoint: str | None = None, min_rows_per_file: int | None = None
) -> None:
    """Write a dataset of `score_dataset` to a folder of Parquet files, each id once over all runs.

    Repeat a run that failed with the same arguments: it scores the rows that are missing. A run after the
    last one adds nothing. `checkpoint` is the folder of the ids that are written, by default `output` with
    ".checkpoint" added; it must stay as long as runs are to go on. Both are paths on a file system that every
    machine has, or URIs. A file holds a batch, or several for `min_rows_per_file`; the rows that wait for
    their file are lost in a failure, and scored again.

    Raises SourceError where the dataset does not begin with a read, ResumeMismatch where the output has other
    rewards (pair, beta, convention) or lacks files whose ids are in the checkpoint, OutputExists where it has
    files but no checkpoint.
    """
    run = Run.of(scored)
    if not begins_with_read(scored._logical_plan.dag):
        raise SourceError(
            "the dataset does not begin with a read, such as ray.data.read_parquet: Ray could not leave out "
            "the rows that an earlier run wrote",
            hint="write the rows to Parquet first, and read them; do not materialize the dataset",
        )
    output = absolute(output)
    checkpoint = f"{output}.checkpoint" if checkpoint is None else absolute(checkpoint)
    _check_folders(output, checkpoint, run.fingerprint)
    from ray.data.checkpoint import CheckpointConfig  # noqa: PLC0415

    scored.context.checkpoint_config = CheckpointConfig(
        id_column=run.id_column, checkpoint_path=checkpoint, delete_checkpoint_on_success=False
    )
    scored.write_parquet(output, min_rows_per_file=min_rows_per_file)


def absolute(folder: str) -> str:
    """Return a path as an absolute one and a URI as it is, both without a slash at the end.

    >>> absolute("s3://bucket/scored/"), absolute("/data/scored")
    ('s3://bucket/scored', '/data/scored')
    """
    return folder.rstrip("/") if "://" in folder else str(Path(folder).absolute())


def begins_with_read(operator: Any) -> bool:
    """Return whether every path of a logical plan begins with an operator at which Ray leaves out ids.

    Ray's own check takes a plan of no such operator for one, too: `all` of no inputs is true.
    """
    if type(operator).__name__ in ("Read", "ReadFiles"):
        return True
    inputs = operator.input_dependencies
    return bool(inputs) and all(begins_with_read(each) for each in inputs)


def _check_folders(output: str, checkpoint: str, fingerprint: Mapping[str, str]) -> None:
    files, ids = _parquet_files(output), _parquet_files(checkpoint)
    names = [path.rpartition("/")[2] for path in ids]
    committed = {name.removesuffix(PARQUET) for name in names if not name.endswith(PENDING)}
    if files and not ids:
        raise OutputExists(
            f"{output} has {len(files)} Parquet files, but {checkpoint} has no ids of theirs: every row "
            "would be written again",
            hint="write to another folder, or name the checkpoint of this one",
        )
    if lost := without_file(committed, [path.rpartition("/")[2] for path in files]):
        raise ResumeMismatch(
            f"{checkpoint} has the ids of {len(lost)} files that {output} lacks, such as {min(lost)}: their "
            "rows would never be scored",
            hint="put the files back, or delete both folders and begin anew",
        )
    for path in files[:1]:  # every run compares, so all files are alike
        system, _ = FileSystem.from_uri(output)
        found = fingerprint_of(pq.read_schema(path, filesystem=system).metadata)
        if found != fingerprint:
            raise ResumeMismatch(
                f"{output} has rewards of {found}, this run would add those of {dict(fingerprint)}",
                hint="write to another folder, or score with the same pair, beta and convention",
            )


def fingerprint_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return pair, beta and convention from the metadata of a scored file's schema; {} where it has none."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        found = msgspec.json.decode(text, type=Provenance).fingerprint()
    except ValueError:  # of a newer version, or not of stepscore
        return {}
    return {name: found[name] for name in ("pair", "beta", "convention") if name in found}


def without_file(committed: Collection[str], files: Collection[str]) -> set[str]:
    """Return the committed names of which there is no file; a file of name N is N-0.parquet, N-1.parquet...

    >>> without_file({"a_000000", "a_000001"}, ["a_000001-0.parquet"])
    {'a_000000'}
    """
    return set(committed) - {name.rpartition("-")[0] for name in files}


def _parquet_files(folder: str) -> list[str]:
    """Return the paths of the Parquet files in a folder; none where it does not exist."""
    system, path = FileSystem.from_uri(folder)
    found = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(one.path for one in found if one.type is FileType.File and one.path.endswith(PARQUET))

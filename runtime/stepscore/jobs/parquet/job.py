"""Score into a Parquet file: first into lines beside it, which resume, and at the end into columns.

OUT.parquet.jsonl has the lines while the job runs; it is the output of `run_to_file`. At the end it becomes
OUT.parquet, which is there as a whole or not at all, and is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from stepscore.errors import OutputExists
from stepscore.extras import naming_extras
from stepscore.fileio import locked
from stepscore.jobs.job import DEFAULT_OPTIONS, JobOptions, StreamScorer, Tally, run_to_file
from stepscore.jobs.merge import Tally as MergeTally
from stepscore.jobs.merge import already_exists, merge_to_file
from stepscore.jobs.provenance import is_header
from stepscore.jobs.resume import refuse_same_file
from stepscore.jobs.seal import fingerprint_path

SUFFIX = ".parquet"


def is_parquet(output: str) -> bool:
    """Return whether the name of an output says Parquet: there is no content yet to find it by.

    >>> is_parquet("rewards.parquet"), is_parquet("rewards.jsonl")
    (True, False)
    """
    return Path(output).suffix.lower() == SUFFIX


def journal_path(output: Path) -> Path:
    """Return the path of the lines of an unfinished output, in the same folder."""
    return output.with_name(output.name + ".jsonl")


def run_to_parquet(
    scorer: StreamScorer, source: BinaryIO, path: Path, tally: Tally, options: JobOptions = DEFAULT_OPTIONS
) -> None:
    """Score `source` into the Parquet file at `path`, resuming an unfinished run of the same job.

    A finished one is compared with the input. Raises as `run_to_file` does, ResumeMismatch also where the
    input has more lines than a finished output, OutputExists where no job wrote the file, ExtraMissing.
    """
    with naming_extras():
        from stepscore.jobs.parquet.finished import check_finished, require_parquet  # noqa: PLC0415
    journal = journal_path(path)
    if path.exists() and path.stat().st_size:
        with path.open("rb") as output:
            refuse_same_file(output, source)
        tally.provenance, _ = require_parquet(path)
        if not journal.exists() and not options.overwrite:
            job = options.provenance(scorer)
            tally.records, errors = check_finished(path, options.lines(source), job, scorer.stream)
            tally.resumed = tally.records
            tally.errors.update(errors)
            return
    run_to_file(scorer, source, journal, tally, options)
    _finish(journal, path)


def merge_to_parquet(
    source: BinaryIO, shards: Sequence[Path], path: Path, *, overwrite: bool = False
) -> MergeTally:
    """Merge the outputs of all shards into the Parquet file at `path`, which one run would have written.

    Raises as `merge_to_file` does, and ExtraMissing.
    """
    with naming_extras():
        from stepscore.jobs.parquet.finished import require_parquet  # noqa: PLC0415
    if path.exists():
        if not overwrite:
            raise already_exists(path)
        with path.open("rb") as output:
            refuse_same_file(output, source)
        if path.stat().st_size:
            require_parquet(path)
    journal = journal_path(path)
    tally = merge_to_file(source, shards, journal, overwrite=overwrite)
    _finish(journal, path)
    return tally


def _finish(journal: Path, path: Path) -> None:
    """Write the lines of a finished job as Parquet, and remove them."""
    with naming_extras():
        from stepscore.jobs.parquet.finished import FACTS, JobFacts  # noqa: PLC0415
        from stepscore.jobs.parquet.writing import answers, write_parquet  # noqa: PLC0415
    with journal.open("rb") as file, locked(file, path, f"another run is writing {path}"):
        header = file.readline()
        if not is_header(header):
            raise OutputExists(f"{journal} has no header", hint="delete it, or give another output")
        facts = JobFacts.of(answers(journal, header))
        write_parquet(journal, path, header, {FACTS: msgspec.json.encode(facts)})
        journal.unlink()
        fingerprint_path(journal).unlink(missing_ok=True)

"""Claim an output for a job: its fingerprint, its lock, and what must not be written over.

The fingerprint of the run that began an output must equal this job's; earlier_answers.py compares the lines.
The first batch of a resumed run begins where the output ends, so its log-probs may differ by 1e-5 from those
of an uninterrupted run (another batch composition); the records before it and, as a rule, after it are equal
to the bit.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from stepscore.errors import OutputExists, OutputUnwritable, ResumeMismatch
from stepscore.fileio import append_regular, read_regular, write_atomically

LINES, DIGEST = "lines", "sha256"
"""Names of the seal in a fingerprint: the number of lines that a run left, and their digest."""


def fingerprint_path(output: Path) -> Path:
    """Return the path of an output's fingerprint, in the same folder."""
    return output.with_name(output.name + ".fingerprint.json")


@contextmanager
def claim(
    path: Path, source: BinaryIO, fingerprint: dict[str, str], *, overwrite: bool = False
) -> Iterator[BinaryIO]:
    """Open an output for appending, locked for this process; write its fingerprint, or check the one there.

    With `overwrite`, the output of an earlier job is emptied first. Raises OutputExists for a file that no
    job wrote, ResumeMismatch for one of another job, OutputUnwritable.
    """
    try:
        is_new = not path.exists()
        output = append_regular(path)
    except OSError as error:
        raise OutputUnwritable(f"cannot write {path}: {error.strerror}") from None
    with output:
        _lock(output, path)
        refuse_same_file(output, source)
        if os.fstat(output.fileno()).st_size:
            earlier = read_fingerprint(path)
            if overwrite:
                output.truncate(0)
            else:
                _compare(earlier, fingerprint, path)
        if not os.fstat(output.fileno()).st_size:
            try:
                _write_fingerprint(fingerprint, path)
            except OutputUnwritable:
                if is_new:
                    path.unlink(missing_ok=True)
                raise
        yield output


def resume_mismatch(path: Path, fault: str) -> ResumeMismatch:
    """Return the error of an output that is not a part of this job's."""
    return ResumeMismatch(
        f"cannot resume {path}: {fault}",
        hint="score everything anew with --overwrite, or give another --output",
    )


def read_fingerprint(output: Path) -> dict[str, str]:
    """Return the fingerprint of a job's output; raise OutputExists where it is missing or invalid."""
    place = fingerprint_path(output)
    try:
        return msgspec.json.decode(read_regular(place), type=dict[str, str])
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise OutputUnwritable(
                f"cannot read {place}: {error.strerror}", hint="remove it, or give another output"
            ) from None
        raise _not_written(output) from None
    except (ValueError, RecursionError):
        raise _not_written(output) from None


def _not_written(output: Path) -> OutputExists:
    return OutputExists(
        f"{output} was not written by stepscore: {fingerprint_path(output).name} is missing or invalid",
        hint="give another output, or delete it",
    )


def seal(path: Path, fingerprint: dict[str, str], num_lines: int, digest: str) -> None:
    """Add to the fingerprint how many lines a run leaves, and their SHA-256: then no edit of them is unseen.

    A run that is killed or has no space leaves an earlier seal, or none.
    """
    with suppress(OutputUnwritable):
        _write_fingerprint({**fingerprint, LINES: str(num_lines), DIGEST: digest}, path)


def _compare(earlier: dict[str, str], now: dict[str, str], output: Path) -> None:
    differences = [
        f"{name} was {earlier.get(name, 'not given')}, now {now.get(name, 'not given')}"
        for name in sorted({*earlier, *now} - {LINES, DIGEST})
        if earlier.get(name) != now.get(name)
    ]
    if differences:
        raise resume_mismatch(output, "; ".join(differences))


def _write_fingerprint(fingerprint: dict[str, str], output: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(fingerprint), indent=2)
    place = fingerprint_path(output)
    if os.path.lexists(place) and not os.path.isfile(place):  # a FIFO would be waited for
        raise OutputUnwritable(f"cannot write {place}: it is not a regular file", hint="remove it")
    write_atomically(place, [text, b"\n"])


def refuse_same_file(output: BinaryIO, source: BinaryIO) -> None:
    """Raise OutputExists where a job would read the file that it writes."""
    try:
        statuses = os.fstat(source.fileno()), os.fstat(output.fileno())
    except OSError:  # a stream in memory
        return
    if stat.S_ISREG(statuses[0].st_mode) and os.path.samestat(*statuses):
        raise OutputExists("the output is the input file", hint="give another output")


def _lock(output: BinaryIO, path: Path) -> None:
    """Lock the output for this process; the lock ends with the process, however it ends."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415

    try:
        fcntl.flock(output.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputUnwritable(f"another run is writing {path}") from None

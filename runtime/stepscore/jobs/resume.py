"""Claim an output for a job: its header, its lock, its seal, and what must not be written over.

The header of the run that began an output must agree with this job's; earlier_answers.py compares the lines.
An output of before headers is continued by the fingerprint beside it. The first batch of a resumed run begins
where the output ends, so its log-probs may differ by 1e-5 from those of an uninterrupted run (another batch
composition); the records before it and, as a rule, after it are equal to the bit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stepscore.errors import HeaderInvalid, OutputExists, OutputUnwritable, ResumeMismatch
from stepscore.fileio import append_regular, locked
from stepscore.jobs.provenance import HEADER_START, HeaderLine, Provenance, is_header, read_header
from stepscore.jobs.seal import (
    DIGEST,
    LINES,
    not_written,
    read_fingerprint,
    read_seal,
    seal_identity,
    write_seal,
)

MOST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Claim:
    """An output that this process writes: its file, its header, and what its seal names it by.

    The header is empty in an output of before headers, whose seal is a part of its fingerprint.
    """

    path: Path
    file: BinaryIO
    header: bytes
    identity: dict[str, str]

    def seal(self, num_lines: int, digest: str) -> None:
        """Put beside the output how many lines a run leaves, and the SHA-256 of header and lines.

        Then no edit of them is unseen. A run that is killed or has no space leaves an earlier seal, or none.
        """
        write_seal(self.path, self.identity, num_lines, digest)

    def read_seal(self) -> tuple[str, str] | None:
        """Return number of lines and digest of this output's seal, None where there is none."""
        return read_seal(self.path, self.identity)


@contextmanager
def claim(
    path: Path, source: BinaryIO, provenance: Provenance, *, overwrite: bool = False
) -> Iterator[Claim]:
    """Open an output for appending, locked for this process; write its header, or compare the one there.

    With `overwrite`, the output of an earlier job is emptied first. Raises OutputExists for a file that no
    job wrote, ResumeMismatch for one of another job, HeaderInvalid, OutputUnwritable.
    """
    try:
        is_new = not path.exists()
        output = append_regular(path)
    except OSError as error:
        raise OutputUnwritable(f"cannot write {path}: {error.strerror}") from None
    with output, locked(output, path, f"another run is writing {path}"):
        refuse_same_file(output, source)
        header = _first_line(path)
        if overwrite and header:
            require_output(path)
        if overwrite or _is_torn(header):
            output.truncate(0)
            header = b""
        if not header:
            header = HeaderLine(provenance).encode()
            try:
                append(output, header)
            except OutputUnwritable:
                if is_new:
                    path.unlink(missing_ok=True)
                raise
        elif not is_header(header):
            header = b""
        yield Claim(path, output, header, _compared(path, header, provenance))


def _compared(path: Path, header: bytes, now: Provenance) -> dict[str, str]:
    """Return what names the seal of an output; raise where it is not a part of this job's."""
    if not header:
        identity = {
            name: text for name, text in read_fingerprint(path).items() if name not in {LINES, DIGEST}
        }
        compare(identity, now, path)
        return identity
    earlier = read_header(header)
    if earlier.derived:
        raise OutputExists(
            f"{path} is what `stepscore {earlier.derived[-1].command}` wrote", hint="give another output"
        )
    compare(earlier.fingerprint(), now, path)
    return seal_identity(earlier)


def compare(earlier: dict[str, str], job: Provenance, output: Path) -> None:
    """Raise ResumeMismatch where what an output depends on is not what a job's does."""
    now = job.fingerprint()
    differences = [
        f"{name} was {earlier.get(name, 'not given')}, now {now.get(name, 'not given')}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]
    if differences:
        raise resume_mismatch(output, "; ".join(differences))


def resume_mismatch(path: Path, fault: str) -> ResumeMismatch:
    """Return the error of an output that is not a part of this job's."""
    return ResumeMismatch(
        f"cannot resume {path}: {fault}",
        hint="score everything anew with --overwrite, or give another --output",
    )


def require_output(path: Path) -> None:
    """Raise OutputExists where the file at `path` is not the output of a job."""
    header = _first_line(path)
    if not is_header(header) and not _is_torn(header):
        read_fingerprint(path)
    elif is_header(header):
        with suppress(HeaderInvalid):
            if read_header(header).derived:
                raise not_written(path)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(MOST_HEADER_BYTES)


def _is_torn(line: bytes) -> bool:
    """Return whether a first line is a header whose end is missing: nothing was answered behind it."""
    return (
        0 < len(line) < MOST_HEADER_BYTES
        and not line.endswith(b"\n")
        and (line.startswith(HEADER_START) or HEADER_START.startswith(line))
    )


def append(out: BinaryIO, data: bytes) -> None:
    """Write bytes to an unbuffered output, all of them."""
    try:
        while data:
            data = data[out.write(data) :]
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write the output: {error.strerror}",
            hint="lines already written stay valid: free space and run the same command again to resume",
        ) from error


def refuse_same_file(output: BinaryIO, source: BinaryIO) -> None:
    """Raise OutputExists where a job would read the file that it writes."""
    try:
        statuses = os.fstat(source.fileno()), os.fstat(output.fileno())
    except OSError:  # a stream in memory
        return
    if stat.S_ISREG(statuses[0].st_mode) and os.path.samestat(*statuses):
        raise OutputExists("the output is the input file", hint="give another output")

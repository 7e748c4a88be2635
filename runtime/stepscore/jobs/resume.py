"""What an earlier run of a job left: the output, the fingerprint beside it, and where to go on.

Nothing is believed: the fingerprint must equal this job's, and every whole line of the output must answer
the line of the input at its place. Only a torn last line is cut. The first batch of a resumed run starts
where the output ends, so its numbers may differ from an undisturbed run's by what batch composition does
(1e-5 in a log-prob); those before and, as a rule, after it are the same to the bit.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from stepscore.errors import (
    DuplicateId,
    InputError,
    InvalidJson,
    OutputExists,
    OutputUnwritable,
    ResumeMismatch,
    TooLarge,
)
from stepscore.fileio import write_atomically
from stepscore.jobs.jsonl import ParsedLine


@dataclass(frozen=True, slots=True)
class Earlier:
    """The answers that stand: whole lines, after which there may be a torn one."""

    num_lines: int
    num_bytes: int
    torn: bool
    errors: Counter[str]


class _Error(msgspec.Struct):
    code: str


class _Answer(msgspec.Struct):
    id: str | int
    cumulative_rewards: list[float] | None = None
    error: _Error | None = None

    def fits(self, line: ParsedLine) -> bool:
        """Whether this can be the answer to that line, as far as an answer tells."""
        if type(self.id) is not type(line.id) or self.id != line.id:
            return False
        if isinstance(line.record, InputError):
            return self.error is not None and self.error.code == line.record.code
        if self.error is not None:
            return self.error.code not in _UNREADABLE  # such a line was mended since
        return self.cumulative_rewards is not None and len(self.cumulative_rewards) == len(line.record.steps)


_ANSWER = msgspec.json.Decoder(_Answer)
_UNREADABLE = {InvalidJson.code, TooLarge.code, DuplicateId.code}


def fingerprint_path(output: Path) -> Path:
    """Return where the fingerprint of an output stands."""
    return output.with_name(output.name + ".fingerprint.json")


@contextmanager
def claim(path: Path, source: BinaryIO, fingerprint: dict[str, str]) -> Iterator[BinaryIO]:
    """Open an output for appending, unbuffered, once it is sure to be this job's and no other run's."""
    try:
        output = path.open("ab", buffering=0)
    except OSError as error:
        raise OutputUnwritable(f"{path} cannot be written: {error.strerror}") from None
    with output:
        _lock(output, path)
        refuse_same_file(output, source)
        if os.fstat(output.fileno()).st_size:
            _compare(fingerprint, read_fingerprint(path), path)
        else:
            _write_fingerprint(fingerprint, path)
        yield output


def earlier_answers(path: Path, lines: Iterator[ParsedLine]) -> Earlier:
    """Read the output so far, taking from `lines` the line that each answer belongs to.

    Raises ResumeMismatch where an answer does not fit its line, or there is no such line.
    """
    num_lines, num_bytes, torn = 0, 0, False
    errors: Counter[str] = Counter()
    with path.open("rb") as output:
        for text in output:
            if not text.endswith(b"\n"):
                torn = True
                break
            answer = _decode_answer(text, path, num_lines)
            line = next(lines, None)
            num_lines, num_bytes = num_lines + 1, num_bytes + len(text)
            if line is None or not answer.fits(line):
                raise _mismatch(path, f"its line {num_lines} does not answer line {num_lines} of the input")
            if answer.error is not None:
                errors[answer.error.code] += 1
    return Earlier(num_lines, num_bytes, torn, errors)


def _decode_answer(text: bytes, path: Path, index: int) -> _Answer:
    try:
        return _ANSWER.decode(text)
    except (ValueError, RecursionError):
        raise _mismatch(path, f"its line {index + 1} was not written by stepscore") from None


def _mismatch(path: Path, fault: str) -> ResumeMismatch:
    return ResumeMismatch(
        f"{path} cannot be continued: {fault}",
        hint=f"give another output, or delete {path} and {fingerprint_path(path).name} to start anew",
    )


def read_fingerprint(output: Path) -> dict[str, str]:
    """Return what stands beside an output of ours; OutputExists where nothing valid does."""
    try:
        return msgspec.json.decode(fingerprint_path(output).read_bytes(), type=dict[str, str])
    except (FileNotFoundError, ValueError):
        raise OutputExists(
            f"{output} is no output of stepscore: no valid {fingerprint_path(output).name} stands beside it",
            hint="give another output, or delete it",
        ) from None


def _compare(ours: dict[str, str], theirs: dict[str, str], output: Path) -> None:
    differences = [
        f"{name} was {theirs.get(name, 'not given')}, now {ours.get(name, 'not given')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if differences:
        raise _mismatch(output, "; ".join(differences))


def _write_fingerprint(fingerprint: dict[str, str], output: Path) -> None:
    """Write it whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(fingerprint), indent=2)
    write_atomically(fingerprint_path(output), [text, b"\n"])


def refuse_same_file(output: BinaryIO, source: BinaryIO) -> None:
    """Raise OutputExists where a job would read what it writes."""
    try:
        statuses = os.fstat(source.fileno()), os.fstat(output.fileno())
    except OSError:  # a stream in memory
        return
    if stat.S_ISREG(statuses[0].st_mode) and os.path.samestat(*statuses):
        raise OutputExists("the output is the input", hint="give another output")


def _lock(output: BinaryIO, path: Path) -> None:
    """Hold the output for this process; the lock ends with the process, however it ends."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415

    try:
        fcntl.flock(output.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputUnwritable(f"another run is writing {path}") from None

"""Resume: check what an earlier run of a job wrote, and find where to continue.

Everything is verified: the fingerprint must equal this job's, and every whole line of the output must answer
the input line at its position. Only a torn last line is cut off. The first batch of a resumed run begins
where the output ends, so its log-probs may differ by 1e-5 from those of an uninterrupted run (another batch
composition); the records before it and, as a rule, after it are equal to the bit.
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
from stepscore.fileio import append_regular, read_regular, write_atomically
from stepscore.jobs.jsonl import ParsedLine
from stepscore.jobs.schema import ErrorLine, ScoredLine, decode_line

_UNREADABLE = {InvalidJson.code, TooLarge.code, DuplicateId.code}


@dataclass(frozen=True, slots=True)
class Earlier:
    """Whole lines of an earlier run, which a torn one may follow."""

    num_lines: int
    num_bytes: int
    torn: bool
    errors: Counter[str]


def fingerprint_path(output: Path) -> Path:
    """Return the path of an output's fingerprint, in the same folder."""
    return output.with_name(output.name + ".fingerprint.json")


@contextmanager
def claim(path: Path, source: BinaryIO, fingerprint: dict[str, str]) -> Iterator[BinaryIO]:
    """Open an output for appending, locked for this process; write its fingerprint, or check the one there.

    Raises OutputExists for a file that no job wrote, ResumeMismatch for one of another job, OutputUnwritable.
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
            _compare(read_fingerprint(path), fingerprint, path)
        else:
            try:
                _write_fingerprint(fingerprint, path)
            except OutputUnwritable:
                if is_new:
                    path.unlink(missing_ok=True)
                raise
        yield output


def earlier_answers(path: Path, lines: Iterator[ParsedLine]) -> Earlier:
    """Read the output so far, and from `lines` the input line that each of its lines answers.

    Raises ResumeMismatch where an answer does not match its line, or the input is shorter.
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
            if line is None or not _matches(answer, line):
                raise _mismatch(path, f"its line {num_lines} does not answer line {num_lines} of the input")
            if isinstance(answer, ErrorLine):
                errors[answer.error.code] += 1
    return Earlier(num_lines, num_bytes, torn, errors)


def _decode_answer(text: bytes, path: Path, index: int) -> ScoredLine | ErrorLine:
    try:
        return decode_line(text)
    except InputError as error:
        raise _mismatch(path, f"its line {index + 1} is {error.message}") from None


def _matches(answer: ScoredLine | ErrorLine, line: ParsedLine) -> bool:
    """Return whether this can be the answer to that line: same id, same error code or number of steps."""
    if type(answer.id) is not type(line.id) or answer.id != line.id:
        return False
    if isinstance(line.record, InputError):
        return isinstance(answer, ErrorLine) and answer.error.code == line.record.code
    if isinstance(answer, ErrorLine):
        return answer.error.code not in _UNREADABLE  # such a line has been repaired since
    return len(answer.cumulative_rewards) == len(line.record.steps)


def _mismatch(path: Path, fault: str) -> ResumeMismatch:
    return ResumeMismatch(
        f"cannot resume {path}: {fault}",
        hint=f"give another output, or delete {path} and {fingerprint_path(path).name} to start over",
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


def _compare(earlier: dict[str, str], now: dict[str, str], output: Path) -> None:
    differences = [
        f"{name} was {earlier.get(name, 'not given')}, now {now.get(name, 'not given')}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    ]
    if differences:
        raise _mismatch(output, "; ".join(differences))


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

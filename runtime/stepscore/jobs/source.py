"""The input of a job: its lines, their ids, and a look at the first lines before anything is written.

Lines are read one by one, so memory does not grow with the input. Ids already seen are kept in a temporary
SQLite file (about 60 bytes of disk per id, a 2 MB cache, 200,000 ids per second).
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, islice
from typing import BinaryIO

from stepscore.batching.pace import STEADY, Pace
from stepscore.errors import DuplicateId, IdsRepeat, InputError, InputUnreadable, NoRecords, OutputUnwritable
from stepscore.jobs.foreign_format import foreign_format
from stepscore.jobs.inputs.intake import Intake
from stepscore.jobs.inputs.opening import is_file
from stepscore.jobs.jsonl import ParsedLine, not_empty, parse_line, read_lines
from stepscore.jobs.shards import Shard, shard_index
from stepscore.records import BY_ACCEPTED_NAMES, AnyRecord, Reading, TokenRecord

FIRST_LINES = 100
"""Lines among which there must be a record."""
FIRST_SECONDS = 0.5
"""Seconds without a further line, or an end, after which a pipe of invalid lines is a conversation."""


ReadLine = tuple[ParsedLine, bytes]
"""A parsed line, and the bytes that it was read from."""


class Lines(Iterator[ParsedLine]):
    """Parsed lines, and the pace at which they arrive."""

    def __init__(self, lines: Iterator[ParsedLine], pace: Pace) -> None:
        self._lines = lines
        self.pace = pace

    def __next__(self) -> ParsedLine:
        return next(self._lines)


def parsed_lines(
    source: BinaryIO,
    limit: int | None = None,
    reading: Reading = BY_ACCEPTED_NAMES,
    shard: Shard | None = None,
) -> Lines:
    """Parse the lines that are not empty, at most `limit`; the second one with an id is a DuplicateId.

    Headers of scored files are skipped as empty lines are. Of a shard, the whole input is parsed, so that its
    lines have the indices and the errors that they have without it.

    Ids that print the same (7 and "7") are the same. A valid record without an id claims its index; an
    invalid line claims an id only if one could be read.

    The first lines are read at once: FIRST_LINES of a file, and of a pipe as many as there are before the
    first record. Raises NoRecords where none of them is a record, IdsRepeat where the samples of a problem
    share its id. A pipe that begins with invalid lines, and then waits for FIRST_SECONDS, is a conversation:
    each of its lines is answered. InputUnreadable is raised behind the last line that could be read.
    """
    lines, pace = _checked_lines(source, limit, reading)
    of_shard = (
        line
        for line, text in lines
        if shard is None or shard.index == shard_index(line.record, text, shard.count)
    )
    return Lines(of_shard, pace)


def lines_by_shard(source: BinaryIO, reading: Reading, count: int) -> Iterator[tuple[int, ParsedLine]]:
    """Parse an input as `parsed_lines` does; yield each line with the number of its shard of `count`."""
    lines, _ = _checked_lines(source, None, reading)
    return ((shard_index(line.record, text, count), line) for line, text in lines)


def _checked_lines(source: BinaryIO, limit: int | None, reading: Reading) -> tuple[Iterator[ReadLine], Pace]:
    ids = _Ids()
    texts: Iterator[tuple[int, bytes]] = islice(not_empty(read_lines(source)), limit)
    intake = None if is_file(source) else Intake(texts)
    texts = intake or texts
    first = next(texts, None)
    lines = _parsed(texts if first is None else chain([first], texts), reading, ids, intake)
    if first is None:
        return lines, intake or STEADY
    head: list[ReadLine] = []
    rest: Iterator[ReadLine] = lines
    try:
        for line, text in islice(lines, FIRST_LINES):
            head.append((line, text))
            if intake and (not isinstance(line.record, InputError) or intake.stays_empty(FIRST_SECONDS)):
                break
    except InputUnreadable as error:
        if not head:
            raise
        rest = _raising(error)
    waits = intake is not None and intake.stays_empty(0)
    if not waits or foreign_format(first[1]):
        _check(first[1], [line for line, _ in head], ids.of_samples)
    return chain(head, rest), intake or STEADY


def _raising(error: InputUnreadable) -> Iterator[ReadLine]:
    yield from ()
    raise error


class _Ids:
    """Ids seen so far, with the texts that had them."""

    def __init__(self) -> None:
        self.of_samples = 0  # lines with the id and the problem of an earlier one, but other steps
        self.seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self.seen.close)  # of an input that is not read to its end
        self.seen.execute("PRAGMA journal_mode = OFF")
        self.seen.execute("BEGIN")
        self.seen.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, problem BLOB, steps BLOB) WITHOUT ROWID")

    def checked(self, line: ParsedLine) -> ParsedLine:
        """Return the line, with DuplicateId where an earlier one has its id."""
        record = None if isinstance(line.record, InputError) else line.record
        if line.given_id is None and record is None:
            return line
        problem, steps = _digests(record) if record else (b"", b"")
        earlier = self._claimed((str(line.id), problem, steps))
        if earlier is None:
            return line
        message = "duplicate id: an earlier line of this input has it"
        if record and earlier[0] == problem and earlier[1] != steps:
            self.of_samples += 1
            message += ", with another solution of the same problem: give every sample its own `id`"
        return replace(line, record=DuplicateId(message), passthrough={})

    def _claimed(self, row: tuple[str, bytes, bytes]) -> tuple[bytes, bytes] | None:
        """Claim an id; return the texts of the line that has it already, None where it is new."""
        try:
            if self.seen.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", row).rowcount:
                return None
            rows = self.seen.execute("SELECT problem, steps FROM ids WHERE id = ?", row[:1]).fetchall()
        except sqlite3.Error as error:
            raise OutputUnwritable(
                f"cannot keep the ids that were seen in a temporary file: {error}",
                hint="free space, or set SQLITE_TMPDIR to a folder with space",
            ) from None
        problem, steps = rows[0]
        return problem, steps


def _digests(record: AnyRecord) -> tuple[bytes, bytes]:
    """Return the digests of problem and steps, or of prompt and response."""
    if isinstance(record, TokenRecord):
        prompt, response = (map(str, ids) for ids in (record.prompt_token_ids, record.response_token_ids))
        return _digest(*prompt), _digest(*response)
    return _digest(record.problem), _digest(*record.steps)


def _digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=8).digest()


def _parsed(
    texts: Iterator[tuple[int, bytes]], reading: Reading, ids: _Ids, intake: Intake | None
) -> Iterator[ReadLine]:
    with closing(ids.seen), closing(intake) if intake else nullcontext():
        for index, (number, text) in enumerate(texts):
            yield ids.checked(parse_line(text, index, reading.record, number=number)), text


def _check(first: bytes, head: list[ParsedLine], of_samples: int) -> None:
    """Raise NoRecords or IdsRepeat where the first lines show what is wrong with the whole file."""
    if all(isinstance(line.record, InputError) for line in head):
        raise _no_records(first, head)
    if 4 * of_samples >= len(head):
        raise IdsRepeat(
            f"`id` repeats: {of_samples} of the first {len(head)} lines have the id and the problem of an "
            "earlier line, but another solution",
            hint="rename `id` to `problem_id`, or remove it: an `id` must be unique in its file",
        )


def _no_records(first: bytes, head: list[ParsedLine]) -> NoRecords:
    found = foreign_format(first)
    if found is not None:
        return NoRecords(f"the input is {found.name}, not JSON Lines: one object a line", hint=found.remedy)
    line = head[0]
    assert isinstance(line.record, InputError)  # all are
    return NoRecords(
        f"none of the first {len(head)} lines is a record; line {line.number}: {line.record.message}",
        hint='write lines such as {"problem": "...", "steps": ["...", "..."]}',
    )

"""Put the outputs of all shards of an input together: the bytes that one run would have written.

The input is read once, in order; each of its lines says which shard answers it, and the next line of that
shard's file must be the answer. Nothing is held in memory but one line of each file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from stepscore.errors import HeaderInvalid, InputError, OutputExists, ShardMismatch
from stepscore.fileio import write_atomically
from stepscore.jobs.earlier_answers import difference, not_the_answer
from stepscore.jobs.inputs.formats import Format, format_of
from stepscore.jobs.jsonl import ParsedLine
from stepscore.jobs.provenance import HeaderLine, Provenance, ScoringOptions, combined, is_header, read_header
from stepscore.jobs.resume import refuse_same_file, require_output
from stepscore.jobs.schema import ErrorLine, decode_line
from stepscore.jobs.seal import read_seal, seal_identity, write_seal
from stepscore.jobs.shards import Shard
from stepscore.jobs.source import lines_by_shard
from stepscore.system import allow_open_files

MOST_FAULTS = 8
"""Faults that an error names."""

OTHER_FILES = 64
"""Files that a process has open besides."""


@dataclass(slots=True)
class Tally:
    """Lines that were merged, and those of them that are errors."""

    records: int = 0
    errors: int = 0


@dataclass(slots=True)
class _ShardFile:
    """The output of one shard: the lines behind its header, read one by one and compared."""

    path: Path
    shard: Shard
    provenance: Provenance
    file: BinaryIO
    digest: hashlib._Hash
    num_lines: int = 0
    fault: str | None = None
    seal: tuple[str, str] | None = field(init=False)

    def __post_init__(self) -> None:
        self.seal = read_seal(self.path, seal_identity(self.provenance))

    def answer(self, line: ParsedLine, tally: Tally) -> bytes:
        """Return the next line if it answers an input line; else keep the fault and return nothing."""
        if self.fault is not None:
            return b""
        text = self.file.readline()
        if not text:
            self.fault = f"it ends before line {line.number} of the input: its run has not finished"
            return b""
        self.fault = self._fault(text, line, tally)
        return b"" if self.fault is not None else text

    def _fault(self, text: bytes, line: ParsedLine, tally: Tally) -> str | None:
        self.num_lines += 1
        self.digest.update(text)
        if not text.endswith(b"\n"):
            return "its last line is torn: its run has not finished"
        try:
            answer = decode_line(text)
        except InputError as error:
            return f"its line {self.num_lines + 1} is {error.message}"
        found = difference(text, answer, line)
        if found is not None:
            return not_the_answer(self.num_lines + 1, line, found)
        num_sealed, digest = self.seal or ("", "")
        if num_sealed == str(self.num_lines) and digest != self.digest.hexdigest():
            return f"a number in its first {num_sealed} lines was edited"
        tally.records += 1
        tally.errors += isinstance(answer, ErrorLine)
        return None

    def end(self) -> None:
        """Keep the fault of a file that goes on behind the last line of the input."""
        if self.fault is None and self.file.readline():
            self.fault = "it has more lines than its part of the input"


def merged(source: BinaryIO, shards: Sequence[Path], tally: Tally) -> Iterator[bytes]:
    """Yield the header and the lines of one run, of the outputs of all shards of the input.

    Raises ShardMismatch, naming each file and its fault: a shard that is missing, given twice, torn,
    unfinished, edited, or of another pair, beta, convention, reading or input.
    """
    with ExitStack() as stack:
        files, whole = _opened(shards, stack)
        options = whole.options or ScoringOptions()
        yield HeaderLine(whole).encode()
        for index, line in lines_by_shard(source, options.reading, len(files)):
            text = files[index].answer(line, tally)
            if text:
                yield text
        for each in files.values():
            each.end()
        _refuse(f"{each.path}: {each.fault}" for each in files.values() if each.fault is not None)


def merge_to_file(source: BinaryIO, shards: Sequence[Path], path: Path, *, overwrite: bool = False) -> Tally:
    """Merge into the file at `path`, which is written as a whole or not at all; seal it.

    Raises OutputExists where the file exists, with `overwrite` where no job wrote it; OutputUnwritable; and
    as `merged` does.
    """
    _refuse_existing(source, shards, path, overwrite=overwrite)
    tally = Tally()
    digest = hashlib.sha256()
    identity: dict[str, str] = {}

    def hashed() -> Iterator[bytes]:
        for line in merged(source, shards, tally):
            if not identity:
                identity.update(seal_identity(read_header(line)))
            digest.update(line)
            yield line

    write_atomically(path, hashed())
    if path.is_file():
        write_seal(path, identity, tally.records, digest.hexdigest())
    return tally


def already_exists(path: Path) -> OutputExists:
    """Return the error of an output that is there and is not to be replaced."""
    return OutputExists(f"{path} already exists", hint="replace it with --overwrite, or give another output")


def _refuse_existing(source: BinaryIO, shards: Sequence[Path], path: Path, *, overwrite: bool) -> None:
    if not path.is_file():
        return
    if any(path.samefile(shard) for shard in shards):
        raise OutputExists(f"the output is the shard {path}", hint="give another output")
    with path.open("rb") as output:
        refuse_same_file(output, source)
    if not overwrite:
        raise already_exists(path)
    if path.stat().st_size:
        require_output(path)


def _opened(paths: Sequence[Path], stack: ExitStack) -> tuple[dict[int, _ShardFile], Provenance]:
    """Open all shards; return them by number, and the provenance of the whole."""
    allow_open_files(len(paths) + OTHER_FILES)
    found: list[_ShardFile] = []
    faults = []
    for path in paths:
        try:
            found.append(_shard_file(path, stack))
        except (ShardMismatch, HeaderInvalid) as error:
            faults.append(f"{path}: {error.message}")
    _refuse(faults)
    files: dict[int, _ShardFile] = {}
    for each in found:
        first = files.setdefault(each.shard.index, each)
        if each.shard.count != found[0].shard.count:
            faults.append(f"{each.path} is shard {each.shard}, {found[0].path} is shard {found[0].shard}")
        elif first is not each:
            faults.append(f"{first.path} and {each.path} are both shard {each.shard}")
    _refuse(faults)
    count = found[0].shard.count
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in files]
    if missing:
        more = ", ..." if len(missing) > MOST_FAULTS else ""
        _refuse(
            [f"of {count:,} shards {len(missing):,} are missing: {', '.join(missing[:MOST_FAULTS])}{more}"]
        )
    return files, _whole(found)


def _shard_file(path: Path, stack: ExitStack) -> _ShardFile:
    file = stack.enter_context(path.open("rb"))
    header = file.readline()
    if format_of(header) is not Format.JSON_LINES:
        raise ShardMismatch(
            "it is a table or compressed, and lines are compared: decompress it, or score the shard into "
            "JSON Lines"
        )
    if not is_header(header):
        raise ShardMismatch("it has no header: it is not the output of `stepscore score --shard`")
    provenance = read_header(header)
    shard = provenance.options.shard if provenance.options else None
    if shard is None or provenance.derived:
        raise ShardMismatch("it was not written by `stepscore score --shard`")
    return _ShardFile(path, shard, provenance, file, hashlib.sha256(header))


def _whole(files: Sequence[_ShardFile]) -> Provenance:
    """Return the provenance of all shards as one run; raise where they are not of one."""
    parts = {str(each.path): _without_shard(each.provenance) for each in files}
    (first_path, first), *others = parts.items()
    faults = []
    for path, other in others:
        now, was = other.fingerprint(), first.fingerprint()
        different = [
            f"{name} is {now.get(name, 'not given')}, that of {first_path} is {was.get(name, 'not given')}"
            for name in sorted({*now, *was})
            if now.get(name) != was.get(name)
        ]
        if different:
            faults.append(f"{path}: {'; '.join(different)}")
    _refuse(faults)
    return combined(parts) or first


def _without_shard(provenance: Provenance) -> Provenance:
    options = msgspec.structs.replace(provenance.options or ScoringOptions(), shard=None)
    return msgspec.structs.replace(provenance, options=options)


def _refuse(faults: Iterable[str]) -> None:
    named = list(faults)
    if named:
        more = f"; and {len(named) - MOST_FAULTS:,} more" if len(named) > MOST_FAULTS else ""
        raise ShardMismatch(
            f"cannot merge: {'; '.join(named[:MOST_FAULTS])}{more}",
            hint="run `stepscore score --shard` of what is named again, with the options of the others",
        )

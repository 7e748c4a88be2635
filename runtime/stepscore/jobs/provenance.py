"""Provenance: the pair, scale, options and run that the numbers of an output come from, in the output itself.

A JSONL output begins with a header, {"stepscore": {...}}: no record and no error line has that key alone. A
JSON output has the same object under the same key. A header may stand anywhere in a file, so files that were
concatenated or shuffled keep theirs; readers skip it as a line and take from it what the rewards depend on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from stepscore.enums import Convention
from stepscore.errors import HeaderInvalid, NotComparable
from stepscore.jobs.shards import Shard
from stepscore.records import Reading

KEY = "stepscore"
"""Name of the provenance in a header line and in a JSON output."""

SCHEMA_VERSION = 1
RESULT_VERSION = 1
"""Version of the objects that commands print with --json."""
HEADER_START = b'{"stepscore":{"schema_version":'
"""How a header begins as it is written."""

Positive = Annotated[float, Meta(gt=0)]
_PLURALS = {"pair": "pairs", "convention": "conventions", "beta": "betas"}


class Command(StrEnum):
    """Commands that make an output of scored lines."""

    SELECT = "select"
    EVALUATE = "evaluate"


class Derivation(msgspec.Struct, frozen=True):
    """A command that made this output of another one."""

    command: Command
    version: Annotated[str, Meta(description="version of stepscore")]
    date: Annotated[str, Meta(description="when it began: ISO 8601, UTC")]


class ScoringOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Options of `score` that decide what its lines hold; those at their default are left out."""

    tokens: Annotated[bool, Meta(description="token ids, texts and log-probs (--tokens)")] = False
    problem_field: Annotated[str | None, Meta(description="field of the problem (--problem-field)")] = None
    steps_field: Annotated[str | None, Meta(description="field of the steps (--steps-field)")] = None
    split: Annotated[bool, Meta(description="steps were split at blank lines (--split)")] = False
    shard: Annotated[Shard | None, Meta(description="part of the input (--shard)")] = None

    @classmethod
    def of(cls, *, tokens: bool, reading: Reading, shard: Shard | None = None) -> ScoringOptions:
        """Return the options of a job."""
        return cls(tokens, reading.problem_field, reading.steps_field, reading.split, shard)

    @property
    def reading(self) -> Reading:
        """Return how records were read from their lines."""
        return Reading(self.problem_field, self.steps_field, self.split)


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of an output's numbers; null: unknown, not used, or different in the parts of the output."""

    schema_version: Annotated[int, Meta(description="version of this object: 1")] = SCHEMA_VERSION
    pair: Annotated[str | None, Meta(description="fingerprint of the pair")] = None
    beta: Annotated[Positive | None, Meta(description="scale of the rewards, per nat")] = None
    convention: Annotated[Convention | None, Meta(description="reward convention")] = None
    version: Annotated[str | None, Meta(description="version of stepscore that scored")] = None
    date: Annotated[
        str | None,
        Meta(description="when scoring first began: ISO 8601, UTC, such as 2026-12-01T09:30:00.000Z"),
    ] = None
    options: Annotated[ScoringOptions | None, Meta(description="options of `score`")] = None
    derived: Annotated[
        list[Derivation], Meta(description="commands that made this output of the scored one, in order")
    ] = []

    def __post_init__(self) -> None:
        if self.beta is not None and not math.isfinite(self.beta):
            raise ValueError("beta is not finite")

    @classmethod
    def of_run(cls, fingerprint: Mapping[str, str], options: ScoringOptions | None = None) -> Provenance:
        """Return that of a run which begins now, with a scorer of this fingerprint (`Scorer.fingerprint`)."""
        return cls(
            pair=fingerprint["pair"],
            beta=float(fingerprint["beta"]),
            convention=Convention(fingerprint["convention"]),
            version=version("stepscore"),
            date=utc_now(),
            options=options,
        )

    @classmethod
    def of_pair(cls, fingerprint: str) -> Provenance:
        """Return that of figures of a pair which hold no reward, made now."""
        return cls(pair=fingerprint, version=version("stepscore"), date=utc_now())

    def fingerprint(self) -> dict[str, str]:
        """Return what the bytes of an output depend on, as text; runs that differ in it do not mix."""
        options = self.options or ScoringOptions()
        known = {"pair": self.pair, "beta": None if self.beta is None else repr(self.beta)}
        known |= {"convention": None if self.convention is None else self.convention.value}
        known |= {"shard": None if options.shard is None else str(options.shard)}
        texts = {name: text for name, text in known.items() if text is not None}
        return texts | {"tokens": "yes" if options.tokens else "no"} | options.reading.options()

    def derived_by(self, command: Command) -> Provenance:
        """Return that of an output which this command makes now of one of this provenance."""
        now = Derivation(command, version("stepscore"), utc_now())
        return msgspec.structs.replace(self, derived=[*self.derived, now])


class HeaderLine(msgspec.Struct, frozen=True):
    """First line of a JSONL output: where its numbers come from."""

    stepscore: Annotated[Provenance, Meta(description="provenance; the only key of the line")]

    def encode(self) -> bytes:
        """Return the line, line feed included."""
        return msgspec.json.encode(self) + b"\n"


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, in milliseconds: precise enough to tell two runs apart."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


_BEGINS = re.compile(rb'\s*\{\s*"stepscore"\s*:')
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_header(line: bytes) -> bool:
    """Return whether a line is a header, of whatever version.

    >>> is_header(b'{"stepscore": {"schema_version": 7}}'), is_header(b'{"stepscore": 1, "problem": "p"}')
    (True, False)
    """
    if not _BEGINS.match(line):
        return False
    try:
        fields = _FIELDS.decode(line)
        return list(fields) == [KEY] and "schema_version" in _FIELDS.decode(fields[KEY])
    except (ValueError, RecursionError):
        return False


def read_header(line: bytes) -> Provenance:
    """Return the provenance of a header; raise HeaderInvalid where it is damaged or of a newer version."""
    try:
        found = msgspec.json.decode(line, type=HeaderLine).stepscore
        fault = f"has the schema version {found.schema_version}, expected {SCHEMA_VERSION}"
        if found.schema_version == SCHEMA_VERSION:
            return found
    except (ValueError, RecursionError) as error:
        fault = f"cannot be read: {str(error)[:200]}"
    raise HeaderInvalid(
        f"the header of the scored file {fault}",
        hint="update stepscore if a newer version wrote the file, else score it again",
    )


class Headers:
    """The headers met while lines of a file are read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines = 0
        self._found: dict[int, Provenance] = {}

    def take(self, line: bytes) -> bool:
        """Count a line, and keep it if it is a header; raise HeaderInvalid."""
        self._lines += 1
        if not is_header(line):
            return False
        self._found[self._lines] = read_header(line)
        return True

    def without(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines that are not headers."""
        return (line for line in lines if not self.take(line))

    def provenance(self) -> Provenance | None:
        """Return what the headers agree on, None without any; raise NotComparable."""
        several = len(self._found) > 1
        places = {
            f"{self._name}, line {at}" if several else self._name: one for at, one in self._found.items()
        }
        return combined(places)


def combined(parts: Mapping[str, Provenance]) -> Provenance | None:
    """Return the provenance of parts, by their places, that are read as one; None without any.

    The date is the earliest; other fields that differ are null. Raises NotComparable where pair, beta or
    convention are known and differ.
    """
    if not parts:
        return None
    (place, first), *others = parts.items()
    merged: dict[str, Any] = {name: getattr(first, name) for name in Provenance.__struct_fields__}
    for other_place, other in others:
        for name, plural in _PLURALS.items():
            here, there = merged[name], getattr(other, name)
            if here is None:
                merged[name] = there
            elif there not in (None, here):
                raise NotComparable(
                    f"{place} and {other_place} were scored with different {plural}: {here} and {there}",
                    hint="no threshold and no selection fits both: score them with the same options",
                )
        for name in ("version", "options"):
            merged[name] = merged[name] if merged[name] == getattr(other, name) else None
        merged["derived"] = merged["derived"] if merged["derived"] == other.derived else []
        merged["date"] = min(filter(None, (merged["date"], other.date)), default=None)
    return Provenance(**merged)


def document(report: msgspec.Struct, provenance: Provenance) -> bytes:
    """Return a report as a line of JSON: command, version and provenance first.

    The command is the tag of the report's struct.
    """
    head = {"command": report.__struct_config__.tag, "schema_version": RESULT_VERSION, KEY: provenance}
    fields = {name: getattr(report, name) for name in report.__struct_fields__}
    return msgspec.json.encode(head | fields) + b"\n"


def document_schema(report: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return the struct of what `document` writes of a report, for its JSON Schema."""
    head: list[tuple[str, Any]] = [("schema_version", int), (KEY, Provenance)]
    fields = [(field.name, field.type) for field in msgspec.structs.fields(report)]
    return msgspec.defstruct(
        report.__name__,
        [*head, *fields],
        tag_field="command",
        tag=report.__struct_config__.tag,
        kw_only=True,
        namespace={"__doc__": report.__doc__},
    )

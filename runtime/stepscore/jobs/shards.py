"""Shards of an input: whole problem groups, so that prefixes are shared and selections stay within one shard.

The shard of a record is a hash of its problem, or of its prompt's token ids: it depends neither on the order
of the lines nor on the machine. A line that is not a record goes by a hash of its bytes.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Annotated

import msgspec
from msgspec import Meta

from stepscore.errors import InputError
from stepscore.records import AnyRecord, Record

_SPELLED = re.compile(r"([0-9]{1,9})/([0-9]{1,9})", re.ASCII)


class Shard(msgspec.Struct, frozen=True):
    """Part `index` of `count` parts of an input, counted from 1."""

    index: Annotated[int, Meta(ge=1, description="number of this shard, from 1")]
    count: Annotated[int, Meta(ge=1, description="number of shards of the input")]

    @classmethod
    def of(cls, text: str) -> Shard:
        """Return the shard spelled I/N; raise ValueError.

        >>> Shard.of("2/8")
        Shard(index=2, count=8)
        """
        found = _SPELLED.fullmatch(text)
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(f"invalid shard {text[:40]!r}; use I/N with I from 1 to N, e.g. 1/8 to 8/8")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def group_digest(record: AnyRecord) -> bytes:
    """Return a digest, 16 bytes, that records with the same prompt share.

    It is BLAKE2b of the problem's text, in which a run of white space counts as one space, or of the prompt's
    token ids as little-endian int64.
    """
    if isinstance(record, Record):
        return blake2b(" ".join(record.problem.split()).encode(), digest_size=16).digest()
    ids = (_wrapped(each).to_bytes(8, "little", signed=True) for each in record.prompt_token_ids)
    return blake2b(b"".join(ids), digest_size=16, person=b"ids").digest()


def shard_index(item: AnyRecord | InputError, line: bytes, count: int) -> int:
    """Return the shard, 1 to `count`, of a record, or of an error and the line that it was read from.

    That is 1 + h mod count, where h is the first 8 bytes, big-endian, of the record's `group_digest`, or of
    the BLAKE2b digest (16 bytes) of the stripped line.

    >>> [shard_index(Record("1 + 1?", (step,)), b"", 8) for step in ("2", "3")]
    [8, 8]
    """
    if isinstance(item, InputError):
        digest = blake2b(line.strip(), digest_size=16, person=b"line").digest()
    else:
        digest = group_digest(item)
    return 1 + int.from_bytes(digest[:8], "big") % count


def _wrapped(token: int) -> int:
    """Wrap an id to 64 bits: one that no vocabulary has is an error of its item, which still has a shard."""
    return (token + 2**63) % 2**64 - 2**63

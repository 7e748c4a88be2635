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

from stepscore.records import Record, TokenRecord

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


def problem_digest(problem: str) -> bytes:
    """Return the digest of a problem's text, 16 bytes; a run of white space counts as one space."""
    return blake2b(" ".join(problem.split()).encode(), digest_size=16).digest()


def shard_index(item: object, line: bytes, count: int) -> int:
    """Return the shard, 1 to `count`, of an item and the line that it was read from.

    That is 1 + h mod count, where h is the first 8 bytes, big-endian, of the BLAKE2b digest (16 bytes) of the
    problem's text, of the prompt's token ids as little-endian int64, or of the stripped line of an error.

    >>> [shard_index(Record("1 + 1?", (step,)), b"", 8) for step in ("2", "3")]
    [8, 8]
    """
    if isinstance(item, Record):
        digest = problem_digest(item.problem)
    elif isinstance(item, TokenRecord):
        ids = b"".join(each.to_bytes(8, "little", signed=True) for each in _in_64_bits(item))
        digest = blake2b(ids, digest_size=16, person=b"ids").digest()
    else:
        digest = blake2b(line.strip(), digest_size=16, person=b"line").digest()
    return 1 + int.from_bytes(digest[:8], "big") % count


def _in_64_bits(item: TokenRecord) -> list[int]:
    """Wrap ids that no vocabulary has: they are an error of the item, and still have a shard."""
    return [(each + 2**63) % 2**64 - 2**63 for each in item.prompt_token_ids]

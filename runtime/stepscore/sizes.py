"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re


def parse_size(text: str) -> int:
    """Return the bytes of 4GB, 4.5 GB or 900MB: units are powers of ten, and one must be given.

    Raises ValueError for anything else, and for sizes that are not above 0.

    >>> parse_size("4.5 GB"), parse_size("900mb"), parse_size("512B")
    (4500000000, 900000000, 512)
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]?)(B?)\s*", text, re.IGNORECASE | re.ASCII)
    try:
        size = float(found[1]) * 10.0 ** (3 * " KMGT".index(found[2].upper() or " ")) if found else math.nan
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"invalid size {text[:40]!r}; use e.g. 4GB or 900MB")
    if found and not found[2] and not found[3]:
        raise ValueError(f"{found[1]} has no unit; use {found[1]}GB, {found[1]}MB or {found[1]}B")
    return round(size)

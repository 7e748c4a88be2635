"""API keys: read from a file and the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from stepscore.errors import InputUnreadable, StepscoreError

KEY_VARIABLE = "STEPSCORE_API_KEY"
_KEY = re.compile(r"[\x21-\x7e]+")


def load_keys(path: Path | None) -> frozenset[bytes]:
    """Return the SHA-256 digests of the keys of a file and of STEPSCORE_API_KEY: one a line.

    Raises StepscoreError where a line is not printable ASCII, or a given source holds no key: a server that
    was meant to be guarded must not start open.
    """
    texts = {}
    if path is not None:
        texts[f"the API key file {path}"] = _read(path)
    if KEY_VARIABLE in os.environ:
        texts[KEY_VARIABLE] = os.environ[KEY_VARIABLE]
    return frozenset().union(*(_digests(source, text) for source, text in texts.items()))


def is_authorized(header: str | None, keys: frozenset[bytes]) -> bool:
    """Return whether an Authorization header holds one of the keys.

    Digests are compared, each in constant time and all of them, so that the time tells nothing of a key.

    >>> is_authorized("Bearer secret", frozenset({_digest("secret")}))
    True
    """
    scheme, _, token = (header or "").partition(" ")
    given = _digest(token.strip())
    matches = [hmac.compare_digest(given, key) for key in keys]
    return scheme.lower() == "bearer" and any(matches)


def _digests(source: str, text: str) -> frozenset[bytes]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [(number, line) for number, line in lines if line]
    for number, key in keys:
        if not _KEY.fullmatch(key):
            raise StepscoreError(
                f"line {number} of {source} is not a key",
                hint="a key is printable ASCII without spaces, one a line",
            )
    if not keys:
        raise StepscoreError(f"{source} holds no key", hint="write one key a line, or leave it out")
    return frozenset(_digest(key) for _, key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputUnreadable(
            f"cannot read the API key file {path}: {reason}", hint="check its path and its permissions"
        ) from None

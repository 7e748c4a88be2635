"""The text that each token adds, from the bytes that byte-level vocabularies spell."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer


class TokenTexts:
    """The bytes of the tokens of a tokenizer, decoded token by token in linear time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._bytes: dict[int, bytes] = {token: text.content.encode() for token, text in added}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """Return one text per token; a character of several tokens comes with the last of them.

        Joined they are the text that was encoded: bytes that are no UTF-8, which no text gives, are U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self._bytes_of(token)) for token in token_ids]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _bytes_of(self, token: int) -> bytes:
        if token not in self._bytes:
            self._bytes[token] = token_bytes(self._tokenizer.id_to_token(token) or "")
        return self._bytes[token]


def token_bytes(spelled: str) -> bytes:
    """Return the bytes of a token in the spelling of byte-level BPE; another spelling stays as it is.

    >>> token_bytes("Ġso"), token_bytes("▁so")
    (b' so', b'\\xe2\\x96\\x81so')
    """
    if all(character in _BYTE_OF for character in spelled):
        return bytes(_BYTE_OF[character] for character in spelled)
    return spelled.encode()


def _byte_of() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes are themselves, the others are characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of()

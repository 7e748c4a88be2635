"""Read the wire format of protobuf, strictly: each message as its fields by number, in file order.

A message is rejected where protobuf would accept what no writer writes: a group, a truncated field, a field
that may occur once and occurs twice (its parts would be merged, or the last one taken).
"""

from __future__ import annotations

from dataclasses import dataclass

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


class Malformed(ValueError):
    """The bytes are not such a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message: integers as int, everything else as the bytes it has in the file."""

    fields: dict[int, list[int | memoryview]]

    @classmethod
    def decode(cls, data: memoryview) -> Message:
        """Split the bytes of a message into its fields; raise Malformed.

        >>> Message.decode(memoryview(b"\\x08\\x96\\x01\\x12\\x02hi")).integer(1)
        150
        """
        fields: dict[int, list[int | memoryview]] = {}
        at, end = 0, len(data)
        value: int | memoryview
        while at < end:
            key, at = _varint(data, at, end)
            kind = key & 7
            if kind == _VARINT:
                value, at = _varint(data, at, end)
            elif kind == _LENGTH:
                size, at = _varint(data, at, end)
                value, at = _taken(data, at, size)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                value, at = _taken(data, at, 8 if kind == _EIGHT_BYTES else 4)
            else:
                raise Malformed(f"a field has wire type {kind}")
            fields.setdefault(key >> 3, []).append(value)
        return cls(fields)

    def integer(self, number: int, default: int = 0) -> int:
        """Return an integer, signed in 64 bits."""
        value = self._only(number)
        if value is None:
            return default
        if not isinstance(value, int):
            raise Malformed(f"field {number} is not an integer")
        return value - (1 << 64) if value >= 1 << 63 else value

    def text(self, number: int) -> str:
        """Return a string, empty by default."""
        value = self._only(number)
        if value is None:
            return ""
        if isinstance(value, int):
            raise Malformed(f"field {number} is not a string")
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            raise Malformed(f"field {number} is not UTF-8") from None

    def message(self, number: int) -> Message | None:
        """Return a message within this one."""
        value = self._only(number)
        return None if value is None else _decoded(value, number)

    def messages(self, number: int) -> list[Message]:
        """Return all messages of a repeated field."""
        return [_decoded(value, number) for value in self.fields.get(number, ())]

    def strings(self, number: int) -> list[str]:
        """Return all strings of a repeated field."""
        return [Message({number: [value]}).text(number) for value in self.fields.get(number, ())]

    def integers(self, number: int) -> list[int]:
        """Return a repeated integer, which may be packed."""
        found: list[int] = []
        for value in self.fields.get(number, ()):
            if isinstance(value, int):
                found.append(Message({number: [value]}).integer(number))
                continue
            at = 0
            while at < len(value):
                one, at = _varint(value, at, len(value))
                found.append(Message({number: [one]}).integer(number))
        return found

    def _only(self, number: int) -> int | memoryview | None:
        values = self.fields.get(number)
        if values is None:
            return None
        if len(values) > 1:
            raise Malformed(f"field {number} occurs {len(values)} times")
        return values[0]


def _decoded(value: int | memoryview, number: int) -> Message:
    if isinstance(value, int):
        raise Malformed(f"field {number} is not a message")
    return Message.decode(value)


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    raise Malformed("a number is truncated or too long")


def _taken(data: memoryview, at: int, size: int) -> tuple[memoryview, int]:
    if size > len(data) - at:
        raise Malformed("it is truncated")
    return data[at : at + size], at + size

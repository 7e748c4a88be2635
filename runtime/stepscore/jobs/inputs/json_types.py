"""Which Arrow columns JSON can hold, and the types they are cast to before they become Python values.

Dates, times and decimals become strings as Arrow prints them (a decimal keeps all its digits). float32
becomes the shortest decimal that reads back as the same number, as everywhere in stepscore's output.
Dictionaries and extension types become their values. What JSON has no form for is an error with its column.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

from stepscore.errors import InputUnreadable


def castings(schema: Any, name: str) -> list[Any]:
    """Return the schemas to cast batches to, one after the other; raise InputUnreadable for a column.

    >>> day, share = pa.field("day", pa.date32()), pa.field("share", pa.float32())
    >>> [str(one.field("share").type) for one in castings(pa.schema([day, share]), "FILE")]
    ['string', 'double']
    """
    _refuse_twice(schema.names, name)
    as_text = pa.schema([_cast(field, _readable(field.type, field.name, name)) for field in schema])
    as_numbers = pa.schema(
        [_cast(text, _numbers(was.type, text.type)) for was, text in zip(schema, as_text, strict=True)]
    )
    steps = [schema, as_text, as_numbers]
    return [after for before, after in pairwise(steps) if not before.equals(after)]


def _cast(field: Any, kind: Any) -> Any:
    return pa.field(field.name, kind)


_AS_THEY_ARE = (kinds.is_boolean, kinds.is_integer, kinds.is_float64, kinds.is_null)
_AS_TEXT = (
    *(kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_decimal, kinds.is_float32),
    *(kinds.is_date, kinds.is_time, kinds.is_timestamp),
)
_LISTS = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)


def _readable(kind: Any, column: str, name: str) -> Any:
    """Return the type that a column is cast to, float32 as its shortest text."""
    kind = _stored(kind)
    if any(holds(kind) for holds in _AS_THEY_ARE):
        return kind
    if any(holds(kind) for holds in _AS_TEXT):
        return pa.string()
    if kinds.is_float16(kind):
        return pa.float32()
    if kinds.is_struct(kind):
        _refuse_twice([one.name for one in fields_of(kind)], name, f"{column}.")
        return pa.struct(
            [_cast(one, _readable(one.type, f"{column}.{one.name}", name)) for one in fields_of(kind)]
        )
    if any(holds(kind) for holds in _LISTS):
        return list_like(kind, _readable(kind.value_type, column, name))
    if kinds.is_map(kind) and kinds.is_string(_readable(kind.key_type, column, name)):
        return pa.map_(pa.string(), _readable(kind.item_type, column, name))
    raise InputUnreadable(
        f"column `{column}` of {name} is {kind}, which JSON cannot hold",
        hint="write the file again without this column, or with its values as text",
    )


def _numbers(was: Any, text: Any) -> Any:
    """Return the type with the texts of float32, and the float32 of float16, as float64."""
    was = _stored(was)
    if kinds.is_float32(was) or kinds.is_float16(was):
        return pa.float64()
    if kinds.is_struct(was):
        pairs = zip(fields_of(was), fields_of(text), strict=True)
        return pa.struct([_cast(now, _numbers(before.type, now.type)) for before, now in pairs])
    if kinds.is_map(was):
        return pa.map_(pa.string(), _numbers(was.item_type, text.item_type))
    if any(holds(was) for holds in _LISTS):
        return list_like(text, _numbers(was.value_type, text.value_type))
    return text


def _stored(kind: Any) -> Any:
    """Return the type of the values of an extension type or a dictionary."""
    while isinstance(kind, pa.BaseExtensionType) or kinds.is_dictionary(kind):
        kind = kind.value_type if kinds.is_dictionary(kind) else kind.storage_type
    return kind


def fields_of(struct: Any) -> list[Any]:
    """Return the fields of a struct type."""
    return [struct.field(at) for at in range(struct.num_fields)]


def list_like(kind: Any, value: Any) -> Any:
    """Return a list type of the kind of another, with values of another type."""
    if kinds.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    return pa.large_list(value) if kinds.is_large_list(kind) else pa.list_(value)


def _refuse_twice(columns: list[str], name: str, within: str = "") -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputUnreadable(
            f"{name} has several columns `{within}{twice[0]}`", hint="rename them, or drop all but one"
        )

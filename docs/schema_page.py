"""docs/schema.md and docs/schemas/*.json: JSON Schema of lines and manifest, and their fields as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLES = {
    "input": "Input line",
    "header": "First line of an output",
    "scored": "Output line of a scored record",
    "error": "Output line of a record with an error",
    "result": "What --json prints",
    "failure": "What --json prints of an error",
    "manifest": "manifest.json of a pair",
}
HEAD = """# JSON Schemas

Generated from the code by `make docs`. Lines are JSON Lines (UTF-8, one object each).
"""


def page(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page: a section for each schema, a table for each object in it."""
    sections = []
    for name, schema in schemas.items():
        sections.append(f"## {TITLES[name]}\n\nSchema: [schemas/{name}.json](schemas/{name}.json).\n")
        sections += _objects(schema)
    return "\n".join([HEAD, *sections])


def as_file(schema: Mapping[str, Any]) -> str:
    """Return the text of a schema file."""
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


def cleaned(schema: Any) -> Any:
    """Return the schema with descriptions dedented, as Python 3.13 does with docstrings and 3.11 does not.

    >>> cleaned({"description": "A line.\\n\\n    More."})
    {'description': 'A line.\\n\\nMore.'}
    """
    if isinstance(schema, list):
        return [cleaned(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: cleandoc(value) if key == "description" and isinstance(value, str) else cleaned(value)
        for key, value in schema.items()
    }


def _objects(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield title, description and fields of every object; enums are described where they are used."""
    definitions = schema.get("$defs", {"": schema})
    for each in definitions.values():
        if "properties" not in each:
            continue
        required = each.get("required", [])
        rows = [
            f"| `{name}` | {_type(field, definitions)} | {'yes' if name in required else ''} | "
            f"{' '.join(field.get('description', '').split())} |"
            for name, field in each["properties"].items()
        ]
        yield f"### {each['title']}\n\n{each.get('description', '')}\n"
        yield "\n".join(["| field | type | required | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a field's type in words.

    >>> _type({"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]}, {})
    'array of number or null'
    """
    if "anyOf" in field:
        return " or ".join(_type(each, definitions) for each in field["anyOf"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        target = definitions[name]
        return f"[{name}](#{name.lower()})" if "properties" in target else _type(target, definitions)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array" and "items" in field:
        return f"array of {_type(field['items'], definitions)}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_type(field['additionalProperties'], definitions)}"
    return str(field.get("type", "any"))

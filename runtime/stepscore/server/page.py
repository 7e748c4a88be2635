"""The page of /docs: the OpenAPI document as one HTML file without scripts and without any request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8881; padding: 0.75rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; } summary code { font-weight: 600; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } a { color: #8bf; } }
"""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


def render(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stepscore</title>'
        f"<style>{STYLE}</style></head><body><h1>stepscore {escape(document['info']['version'])}</h1>"
        '<p>Routes and bodies; as data: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(_routes(document))}<h2>Structs</h2>{''.join(_schemas(document))}</body></html>"
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            head = f"<code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
            yield f"<details><summary>{head}</summary>{_json(operation)}</details>"


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document["components"]["schemas"].items():
        text = escape(schema.get("description", ""))
        head = f"<code>{escape(name)}</code> {text}"
        yield f'<details id="{escape(name)}"><summary>{head}</summary>{_json(schema)}</details>'


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"

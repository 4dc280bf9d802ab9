"""The OpenAPI description as one page of HTML, without scripts and without external resources."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Any

Json = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, h3 { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #8886; padding: .2rem .6rem .2rem 0; vertical-align: top; }
summary { cursor: pointer; }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of the page."""

_REFERENCE = "#/components/schemas/"


def docs_page(description: Json) -> str:
    """Return the page of an OpenAPI document."""
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    body = [
        f"<h1>{title}</h1><p>{escape(description['info'].get('description', ''))}</p>",
        '<p>As a document for programs: <a href="openapi.json">openapi.json</a></p>',
        *(line for path, calls in description["paths"].items() for line in _path(path, calls)),
        "<h2>Shapes</h2>",
        *(line for name, schema in description["components"]["schemas"].items() for line in _schema(name, schema)),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(body)}</body></html>'
    )


def _path(path: str, calls: Json) -> Iterator[str]:
    for method, call in calls.items():
        yield f"<h3>{method.upper()} {escape(path)}</h3><p>{escape(call['summary'])}</p><table>"
        for parameter in call.get("parameters", ()):
            where = f"{parameter['name']} ({parameter['in']})"
            yield _row(f"<code>{escape(where)}</code>", _type(parameter["schema"]), parameter.get("description", ""))
        for media_type, content in call.get("requestBody", {}).get("content", {}).items():
            yield _row("body", _type(content["schema"]), media_type)
        for status, response in call["responses"].items():
            yield _row(f"<code>{status}</code>", _types(response), response.get("description", ""))
        yield "</table>"


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
    yield f"<p>{escape(schema.get('description', ''))}</p><table>"
    required = schema.get("required", ())
    for field, of_field in schema.get("properties", {}).items():
        mark = "" if field in required else " (optional)"
        yield _row(f"<code>{escape(field)}</code>{mark}", _type(of_field), of_field.get("description", ""))
    yield "</table></details>"


def _row(name: str, type_: str, text: str) -> str:
    return f"<tr><td>{name}</td><td>{type_}</td><td>{escape(text)}</td></tr>"


def _types(response: Json) -> str:
    return ", ".join(_type(content.get("schema", {})) for content in response.get("content", {}).values())


def _type(schema: Json) -> str:
    """Describe the type of a value in a few words; schemas are links."""
    if reference := schema.get("$ref"):
        name = escape(reference.removeprefix(_REFERENCE))
        return f'<a href="#{name}"><code>{name}</code></a>'
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return " or ".join(map(_type, schema[choice]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))

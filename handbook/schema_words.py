"""How does a JSON Schema become words and tables?"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from handbook.markdown import code, table

Json = Mapping[str, Any]
Link = Callable[[str], str]
"""Gives, for the name of a schema, the Markdown that leads to its table."""

BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "below {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} entries"),
    ("maxItems", "at most {} entries"),
)
SHORT = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
MANY_KINDS = ("anyOf", "oneOf")


def ref_name(schema: Json) -> str | None:
    """Give the name of the schema that this one refers to; None if it refers to none."""
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def type_words(schema: Json, link: Link) -> str:
    """Say in words what a value must be."""
    if (name := ref_name(schema)) is not None:
        return link(name)
    for key in MANY_KINDS:
        if key in schema:
            return " or ".join(dict.fromkeys(type_words(one, link) for one in schema[key]))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return _with_bounds(f"list of {type_words(schema.get('items', {}), link)}", schema)
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object of {type_words(values, link)}" if isinstance(values, Mapping) else "object"
    if kind == "null":
        return "null"
    return _with_bounds(SHORT.get(str(kind), "any value"), schema)


def fields_table(schema: Json, link: Link) -> str:
    """Give a table of an object's fields: name, type, default, meaning."""
    required = set(schema.get("required", ()))
    rows = [
        (code(name), type_words(field, link), _default(field, name in required), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "default", "is"), rows)


def _default(field: Json, is_required: bool) -> str:
    if is_required:
        return "*needed*"
    if "default" not in field:
        return ""
    default = field["default"]
    return "see there" if isinstance(default, Mapping) and default else code(json.dumps(default))


def _with_bounds(words: str, schema: Json) -> str:
    found = [text.format(_number(schema[key])) for key, text in BOUNDS if key in schema]
    if "pattern" in schema:
        found.append(f"as {code(schema['pattern'])}")
    return ", ".join([words, *found])


def _number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)

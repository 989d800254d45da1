"""What no client would send in good faith, and where in each call of the OpenAPI document it can be put.

Values are JSON text, since some of them have no Python value or are no JSON at all.
"""

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

JSON_VALUES = (
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e400",
    "-1e400",
    "1e308",
    "NaN",
    "-Infinity",
    "9223372036854775808",
    "9" * 400,
    "9" * 5000,
    '""',
    '"1"',
    '"\\u0000"',
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\uffff\\u202e\\ufeff"',
    json.dumps("a" * 5000),
    json.dumps("\N{GRINNING FACE}" * 3000),
    '"../../../../etc/passwd"',
    '"\'; DROP TABLE jobs; --"',
    '"%s%n{0}{{7*7}}${7*7}"',
    '"http://169.254.169.254/latest"',
    '"0001-01-01T00:00:00Z"',
    "[]",
    "{}",
    "[null]",
    "[" * 150 + "]" * 150,
    '{"a":' * 900 + "1" + "}" * 900,
    json.dumps(["x" * 100] * 2000),
    json.dumps({f"field_{i}": i for i in range(2000)}),
    '{"a": 1, "a": 2}',
    '{"": {"": ""}}',
    '{"\\u0000": 1, "\\ud800": 2}',
    '{"source": "local", "path": "/\\u0000"}',
    '{"kind": "selected", "cycle": {"job_id": "\\u0000"}}',
)
TEXTS = (
    "",
    "%00",
    "%ff",
    "%ed%a0%80",
    "%0d%0aX-Injected:%201",
    "a" * 3000,
    "-1",
    "0",
    "9223372036854775808",
    "9" * 300,
    "1e5",
    "NaN",
    "null",
    "[]",
    "%F0%9F%98%80",
    "..%2f..%2fetc%2fpasswd",
    "'%20OR%201=1%20--",
    "%25s%25n{0}",
    "true",
    "1_0",
    "%20",
    "*",
    "0001-01-01T00:00:00Z",
)
"""As they stand in an address."""
BODIES = (
    b"",
    b"{",
    b"nul",
    b"[]",
    b'"text"',
    b"1",
    b"null",
    b"NaN",
    b"\xff\xfe{",
    b'{"\xff": 1}',
    b"[" * 100_000,
)
"""No body of any call."""
_CURSOR_PARTS = (
    "0",
    "-1",
    "1e400",
    '"x"',
    '"\\u0000"',
    '"\\ud800"',
    '"0001-01-01"',
    "null",
    "[]",
    "9223372036854775808",
)
HEADERS: tuple[tuple[str, bytes], ...] = (
    *(("Authorization", value) for value in (b"", b"Bearer", b"Bearer \xff", b"Bearer a b", b"Basic Og==")),
    *(("X-Request-ID", value) for value in (b"", b"a b", b"\xff", b"x" * 5000)),
    *(("Content-Type", value) for value in (b"text/plain", b"application/json; charset=\xff", b"*/*", b"/")),
    *(("If-None-Match", value) for value in (b"*", b'"', b"W/", b"\xff", b'"1",' * 900)),
    *(("Last-Event-ID", value) for value in (b"-1", b"x", b"\xff", b"9" * 400, b"1e5", b"")),
    *(("Idempotency-Key", value) for value in (b"", b"\xff", b"k" * 5000, b"a b")),
    *(
        ("Accept", value)
        for value in (b"", b"text/event-stream", b"\xff", b"application/vnd.apache.parquet;q=x")
    ),
    ("Content-Encoding", b"gzip"),
    ("Expect", b"x"),
    ("Range", b"bytes=0-"),
    ("Cookie", b"\xff=\xff"),
    ("X-HTTP-Method-Override", b"DELETE"),
    ("X-Forwarded-Host", b"evil.example"),
)


def cursors() -> Iterator[str]:
    """Forged cursors: of one to three parts of every kind, and what is no list."""
    lists = [parts for n in (1, 2, 3) for parts in itertools.product(_CURSOR_PARTS, repeat=n)]
    keys = [f"[{', '.join(parts)}]" for parts in lists]
    for key in ("{}", "1", '"x"', "NaN", "[" * 300 + "]" * 300, *keys[:110], *keys[110::7]):
        yield base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


Place = tuple[str | int, ...]
"""Names of fields from the outermost to the innermost; 0 for the one element of a list."""


class Call(NamedTuple):
    """One operation of the document."""

    method: str
    path: str
    parameters: list[dict[str, Any]]
    body: dict[str, Any] | None
    """An example of it."""
    fields: list[Place]
    """Where in the body a value can stand."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def names(self, place: str) -> list[str]:
        """Its parameters in one place: query, path or header."""
        return [given["name"] for given in self.parameters if given["in"] == place]


def calls_of(document: dict[str, Any]) -> list[Call]:
    """Give every operation."""
    return [
        Call(method.upper(), path, found.get("parameters", []), *_body_of(document, found))
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]


def with_value(body: dict[str, Any], place: Place, value: str) -> bytes:
    """Write a body as JSON, with a value, given as JSON text, at one place."""
    return json.dumps(_put(body, place)).replace('"@@here@@"', value).encode()


def _put(inside: object, place: Place) -> object:
    if not place:
        return "@@here@@"
    if place[0] == 0:
        first = inside[0] if isinstance(inside, list) and inside else None
        return [_put(first, place[1:])]
    fields = inside if isinstance(inside, dict) else {}
    return {**fields, place[0]: _put(fields.get(place[0]), place[1:])}


def _body_of(document: dict[str, Any], found: dict[str, Any]) -> tuple[dict[str, Any] | None, list[Place]]:
    if "requestBody" not in found:
        return None, []
    schema = found["requestBody"]["content"]["application/json"]["schema"]
    examples = schema.get("examples") or found["requestBody"]["content"]["application/json"].get("examples")
    return examples[0], sorted(set(_places(document, schema, (), frozenset())), key=str)


def _places(
    document: dict[str, Any], schema: dict[str, Any], place: Place, seen: frozenset[str]
) -> Iterator[Place]:
    if reference := schema.get("$ref"):
        if reference in seen:
            return
        seen |= {reference}
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    for variant in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _places(document, variant, place, seen)
    for name, inner in schema.get("properties", {}).items():
        yield (*place, name)
        yield from _places(document, inner, (*place, name), seen)
    if isinstance(items := schema.get("items"), dict):
        yield (*place, 0)
        yield from _places(document, items, (*place, 0), seen)

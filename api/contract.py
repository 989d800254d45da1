"""What does the API promise? The OpenAPI document as `docs/openapi.json` keeps it, and what would break it.

`python -m api.contract` writes the file anew. Additions need no more than that; a test fails on what existing
clients would notice: something is gone, is of another type, or is newly required.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api.main import create_app
from dmsae.service.settings import settings_from

Json = Mapping[str, Any]
STORED = Path(__file__).parents[1] / "docs" / "openapi.json"
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
ANYTHING = frozenset({"object", "array", "string", "number", "boolean", "null"})


NOWHERE = {
    "DMSAE_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
    "DMSAE_BROKER_URL": "redis://127.0.0.1:1/0",
    "DMSAE_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    "DMSAE_S3_ACCESS_KEY": "a",
    "DMSAE_S3_SECRET_KEY": "b",
}
"""The document needs an application, and that connects to nothing."""


def make_document() -> dict[str, Any]:
    """Give the document of this code, whatever the environment says."""
    return create_app(settings_from(NOWHERE)).openapi()


def find_breaking(old: Json, new: Json) -> list[str]:
    """Say, one sentence each, what a client of the old document would run into with the new one."""
    found: list[str] = []
    for path, calls in old["paths"].items():
        for method, call in calls.items():
            where = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                found.append(f"{where} is gone.")
            else:
                found += _Comparison(old, new).calls(call, now, where)
    return found


class _Comparison:
    """Two documents side by side, of which each pair of schemas is looked into once."""

    def __init__(self, old: Json, new: Json) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[int, int, bool]] = set()

    def calls(self, old: Json, new: Json, where: str) -> Iterator[str]:
        yield from self._parameters(old, new, where)
        yield from self._bodies(old.get("requestBody"), new.get("requestBody"), where)
        for status, answer in old["responses"].items():
            if not status.startswith(("2", "3")):
                continue
            place = f"{where}, answer {status}"
            if status not in new["responses"]:
                yield f"{place} is gone."
                continue
            kinds = new["responses"][status].get("content", {})
            for kind, content in answer.get("content", {}).items():
                if kind not in kinds:
                    yield f"{place} is no longer {kind}."
                elif "schema" in content:
                    now = kinds[kind].get("schema", {})
                    yield from self.schemas(content["schema"], now, place, is_sent=False)

    def _parameters(self, old: Json, new: Json, where: str) -> Iterator[str]:
        before = {(given["in"], given["name"]): given for given in old.get("parameters", [])}
        after = {(given["in"], given["name"]): given for given in new.get("parameters", [])}
        for key, given in before.items():
            place = f"{where}, parameter {key[1]}"
            if key not in after:
                yield f"{place} is gone."
            else:
                yield from self.schemas(given["schema"], after[key]["schema"], place, is_sent=True)
        for key, given in after.items():
            if given.get("required") and not before.get(key, {}).get("required"):
                yield f"{where}, parameter {key[1]} is required now."

    def _bodies(self, old: Json | None, new: Json | None, where: str) -> Iterator[str]:
        if new is not None and new.get("required") and not (old or {}).get("required"):
            yield f"{where}, body is required now."
        for kind, content in (old or {}).get("content", {}).items():
            after = (new or {}).get("content", {}).get(kind)
            if after is None:
                yield f"{where}, body of {kind} is no longer taken."
            else:
                yield from self.schemas(content["schema"], after["schema"], f"{where}, body", is_sent=True)

    def schemas(self, old: Json, new: Json, where: str, *, is_sent: bool) -> Iterator[str]:
        """Compare what clients send (old values must still be taken) or what they are answered."""
        before, after = _variants(self._old, old), _variants(self._new, new)
        was, now = _types(before), _types(after)
        if is_sent and was - now:
            yield f"{where} no longer takes {_listed(was - now)}."
        if not is_sent and now - was:
            yield f"{where} may be {_listed(now - was)} now."
        if is_sent:
            yield from _narrowed(before, after, where)
        for first in before:
            second = _match(first, after)
            if second is not None:
                yield from self._inner(first, second, where, is_sent=is_sent)
            elif "properties" in first and "object" in now:
                yield f"{where} has no {first.get('title', 'such object')} any more."

    def _inner(self, old: Json, new: Json, where: str, *, is_sent: bool) -> Iterator[str]:
        pair = (id(old), id(new), is_sent)
        if pair in self._seen:
            return
        self._seen.add(pair)
        had, has = old.get("properties", {}), new.get("properties", {})
        for name, schema in had.items():
            if name in has:
                yield from self.schemas(schema, has[name], f"{where}.{name}", is_sent=is_sent)
            elif not is_sent or new.get("additionalProperties") is False:
                yield f"{where}.{name} is gone."
        needed, needs = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(needs - needed if is_sent else (needed - needs) & has.keys()):
            yield f"{where}.{name} {'is required' if is_sent else 'may be missing'} now."
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                yield from self.schemas(old[key], new[key], f"{where}[]", is_sent=is_sent)


def _variants(document: Json, schema: Json) -> list[Json]:
    """Give what a schema may be, references followed and alternatives laid side by side."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if not alternatives:
        return [schema]
    return [variant for alternative in alternatives for variant in _variants(document, alternative)]


def _types(variants: list[Json]) -> frozenset[str]:
    found: set[str] = set()
    for variant in variants:
        given = variant.get("type")
        found |= ANYTHING if given is None and not _values(variant) else {given} if given else set()
        found |= {_type_of(value) for value in _values(variant) or ()}
    return frozenset(found | {"integer"} if "number" in found else found)


def _type_of(value: object) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return kinds.get(type(value), "object")


def _values(schema: Json) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _tag(variant: Json) -> tuple[str, ...]:
    """Give what tells an object from other kinds of it: its constants."""
    properties = variant.get("properties", {})
    return tuple(
        f"{name}={schema['const']}" for name, schema in sorted(properties.items()) if "const" in schema
    )


def _match(old: Json, after: list[Json]) -> Json | None:
    """Find the variant that an old one has become."""
    kind = old.get("type")
    same = [variant for variant in after if variant.get("type") == kind]
    if kind == "object" and _tag(old):
        same = [variant for variant in same if _tag(variant) == _tag(old)]
    if kind == "object" and len(same) > 1:
        same = [variant for variant in same if variant.get("title") == old.get("title")] or same[:1]
    return same[0] if same else None


def _narrowed(before: list[Json], after: list[Json], where: str) -> Iterator[str]:
    """Say which old values are no longer taken: words of a list, numbers or lengths within bounds."""
    kept = [value for variant in after for value in _values(variant) or ()]
    is_free = any(_values(variant) is None and variant.get("type") in ("string", None) for variant in after)
    for variant in before:
        gone = [value for value in _values(variant) or () if value not in kept]
        if gone and not is_free:
            yield f"{where} no longer takes {_listed(map(str, gone))}."
        now = _match(variant, after)
        if now is None:
            continue
        if _values(variant) is None and _values(now) is not None:
            yield f"{where} takes only {_listed(map(str, _values(now) or ()))} now."
        for keys, sign in ((LOWER, 1), (UPPER, -1)):
            for key in (key for key in keys if key in now):
                if key not in variant or sign * now[key] > sign * variant[key]:
                    yield f"{where} is bounded by {key} {now[key]} now."
        if "pattern" in now and now["pattern"] != variant.get("pattern"):
            yield f"{where} must match another pattern now."


def _listed(words: Any) -> str:
    return ", ".join(sorted(words))


def main() -> None:
    """Write the document of this code."""
    STORED.write_text(json.dumps(make_document(), indent=1, ensure_ascii=False) + "\n")
    sys.stderr.write(f"Wrote {STORED.name}.\n")


if __name__ == "__main__":
    main()

"""The OpenAPI document is a contract: what clients rely on stays, and the comparison that says so can see."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from api import contract

Document = dict[str, Any]
SENT = {
    "title": "Sent",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"anyOf": [{"type": "string", "maxLength": 10}, {"type": "null"}]},
        "size": {"type": "integer", "minimum": 1},
        "level": {"enum": ["low", "high"], "type": "string"},
        "inner": {"anyOf": [{"$ref": "#/components/schemas/Left"}, {"$ref": "#/components/schemas/Right"}]},
        "many": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["size"],
}
ANSWER = {
    "title": "Answer",
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "again": {"anyOf": [{"$ref": "#/components/schemas/Answer"}, {"type": "null"}]},
    },
    "required": ["id"],
}


def side(kind: str, **properties: Any) -> Document:
    return {
        "title": kind.title(),
        "type": "object",
        "additionalProperties": False,
        "properties": {"kind": {"const": kind, "type": "string"}, **properties},
        "required": ["kind"],
    }


def of(name: str) -> Document:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


OLD: Document = {
    "paths": {
        "/things": {
            "post": {
                "parameters": [{"in": "query", "name": "dry", "schema": {"type": "boolean"}}],
                "requestBody": {**of("Sent"), "required": True},
                "responses": {"201": of("Answer"), "4XX": {}},
            },
            "get": {"responses": {"200": of("Answer")}},
        }
    },
    "components": {
        "schemas": {
            "Sent": SENT,
            "Answer": ANSWER,
            "Left": side("left", a={"type": "string"}),
            "Right": side("right", b={"type": "string"}),
        }
    },
}


def post(document: Document) -> Document:
    found: Document = document["paths"]["/things"]["post"]
    return found


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def sent(document: Document) -> Document:
    found: Document = schema(document, "Sent")["properties"]
    return found


def answered(document: Document) -> Document:
    found: Document = schema(document, "Answer")["properties"]
    return found


BREAKING: dict[str, Callable[[Document], object]] = {
    "POST /things is gone.": lambda new: new["paths"]["/things"].pop("post"),
    "GET /things is gone.": lambda new: new["paths"]["/things"].pop("get"),
    "parameter dry is gone": lambda new: post(new)["parameters"].clear(),
    "parameter dry no longer takes boolean": lambda new: post(new)["parameters"][0]["schema"].update(
        type="string"
    ),
    "parameter dry is required": lambda new: post(new)["parameters"][0].update(required=True),
    "parameter more is required": lambda new: post(new)["parameters"].append(
        {"in": "query", "name": "more", "required": True, "schema": {}}
    ),
    "body of application/json is no longer": lambda new: post(new).pop("requestBody"),
    "answer 201 is gone": lambda new: post(new)["responses"].pop("201"),
    "body.name is gone": lambda new: sent(new).pop("name"),
    "body.name is required": lambda new: schema(new, "Sent")["required"].append("name"),
    "body.more is required": lambda new: (
        sent(new).update(more={"type": "string"}),
        schema(new, "Sent")["required"].append("more"),
    ),
    "body.name no longer takes null": lambda new: sent(new)["name"]["anyOf"].pop(),
    "body.size no longer takes integer": lambda new: sent(new)["size"].update(type="string"),
    "body.size is bounded by minimum 2": lambda new: sent(new)["size"].update(minimum=2),
    "body.size is bounded by maximum 9": lambda new: sent(new)["size"].update(maximum=9),
    "body.name is bounded by maxLength 5": lambda new: sent(new)["name"]["anyOf"][0].update(maxLength=5),
    "body.level no longer takes low": lambda new: sent(new)["level"]["enum"].remove("low"),
    "body.level must match": lambda new: sent(new)["level"].update(pattern="^h"),
    "body.inner has no Right": lambda new: sent(new)["inner"]["anyOf"].pop(),
    "body.inner.a is gone": lambda new: schema(new, "Left")["properties"].pop("a"),
    "body.many[] no longer takes integer": lambda new: sent(new)["many"].update(items={"type": "string"}),
    "answer 201.id is gone": lambda new: answered(new).pop("id"),
    "answer 201.id may be missing": lambda new: schema(new, "Answer")["required"].clear(),
    "answer 201.id may be null": lambda new: answered(new).update(
        id={"anyOf": [{"type": "string"}, {"type": "null"}]}
    ),
    "answer 201.share may be string": lambda new: answered(new)["share"]["anyOf"].append({"type": "string"}),
}
HARMLESS: dict[str, Callable[[Document], object]] = {
    "another call": lambda new: new["paths"].update({"/more": {"get": {"responses": {"200": {}}}}}),
    "another parameter": lambda new: post(new)["parameters"].append(
        {"in": "query", "name": "more", "schema": {"type": "integer"}}
    ),
    "another field to send": lambda new: sent(new).update(more={"type": "string"}),
    "another answer": lambda new: post(new)["responses"].update({"200": of("Answer")}),
    "another field of an answer": lambda new: answered(new).update(more={"type": "string"}),
    "a field that need not be sent any more": lambda new: schema(new, "Sent")["required"].clear(),
    "a wider field": lambda new: sent(new).update(size={"anyOf": [{"type": "number"}, {"type": "string"}]}),
    "another word": lambda new: sent(new)["level"]["enum"].append("middle"),
    "another kind": lambda new: sent(new)["inner"]["anyOf"].append(side("third")),
    "a field that always has a value": lambda new: answered(new).update(share={"type": "number"}),
    "another name for a schema": lambda new: new["components"]["schemas"].update(Sent=copy.deepcopy(SENT)),
    "other words": lambda new: post(new).update(description="better said", tags=["things"]),
}


@pytest.mark.parametrize("told", BREAKING)
def test_each_way_to_break_a_client_is_seen(told: str) -> None:
    new = copy.deepcopy(OLD)
    BREAKING[told](new)
    found = contract.find_breaking(OLD, new)
    assert any(told in sentence for sentence in found), found


@pytest.mark.parametrize("name", HARMLESS)
def test_an_addition_breaks_nobody(name: str) -> None:
    new = copy.deepcopy(OLD)
    HARMLESS[name](new)
    assert new != OLD or name == "another name for a schema"
    assert contract.find_breaking(OLD, new) == []


def test_the_api_keeps_what_the_stored_document_promises() -> None:
    stored = json.loads(contract.STORED.read_text())
    now = contract.make_document()
    assert contract.find_breaking(stored, now) == []
    assert contract.find_breaking(now, now) == []

"""How does the OpenAPI document show examples? With the nulls in them, which FastAPI leaves out.

Without them an example lacks fields that its own schema requires.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from api.schemas import Answer

Json = dict[str, Any]


class DocumentedApi(FastAPI):
    """FastAPI's application, whose document shows its examples whole."""

    def openapi(self) -> Json:
        """Give the document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _show_answers(document["components"]["schemas"])
            for route in _routes_below(self.routes):
                for method in route.methods or ():
                    _show_examples(document["paths"][route.path][method.lower()], route)
        return super().openapi()


def _show_answers(schemas: Json) -> None:
    for model in _models_below(Answer):
        extra = model.model_config.get("json_schema_extra")
        if isinstance(extra, dict) and "examples" in extra and model.__name__ in schemas:
            schemas[model.__name__]["examples"] = extra["examples"]


def _show_examples(call: Json, route: APIRoute) -> None:
    body = route.body_field
    if body is not None and body.field_info.examples:
        call["requestBody"]["content"]["application/json"]["schema"]["examples"] = body.field_info.examples
    for status, answer in route.responses.items():
        for kind, content in answer.get("content", {}).items():
            shown = call["responses"][str(status)]["content"][kind]
            for name, example in content.get("examples", {}).items():
                shown["examples"][name]["value"] = example["value"]


def _routes_below(routes: Sequence[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from _routes_below(router.routes)
        elif isinstance(route, APIRoute) and route.include_in_schema:
            yield route


def _models_below(model: type[Answer]) -> Iterator[type[Answer]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _models_below(inner)

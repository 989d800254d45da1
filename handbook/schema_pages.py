"""The reference of what goes over HTTP and into a job: from `docs/openapi.json` and the settings' classes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmsae.config import CoreTrainingConfig, DistillationConfig
from dmsae.presets import PRESETS
from dmsae.probe_config import CONFIGS
from handbook.markdown import anchor, code, page, table
from handbook.schema_words import MANY_KINDS, Json, fields_table, ref_name, type_words

OPENAPI = Path(__file__).parents[1] / "docs" / "openapi.json"
METHODS = ("get", "post", "patch", "put", "delete")


def http_page() -> str:
    """Give every call: what it does, takes and answers."""
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    by_tag: dict[str, list[str]] = {}
    for path, calls in document["paths"].items():
        for method in filter(calls.__contains__, METHODS):
            call = calls[method]
            by_tag.setdefault(call["tags"][0], []).append(_call(f"{method.upper()} {path}", call))
    parts = [f"## {tag.capitalize()}\n\n" + "\n\n".join(calls) for tag, calls in by_tag.items()]
    head = (
        "`Authorization: Bearer KEY` goes with every call, once a key was ever made. Failures are told in "
        "problem documents ([Errors](errors.md)). The same for programs: [openapi.json](../../openapi.json)."
    )
    return page("HTTP calls", "`docs/openapi.json`", head, *parts)


def http_documents_page() -> str:
    """Give every document that calls take or answer, field by field."""
    schemas = json.loads(OPENAPI.read_text(encoding="utf-8"))["components"]["schemas"]
    parts = [
        f"## {name}\n\n{schema.get('description', '')}\n\n{fields_table(schema, _here)}".strip()
        for name, schema in sorted(schemas.items())
    ]
    return page("HTTP documents", "`docs/openapi.json`", *parts)


def job_settings_page() -> str:
    """Give every setting of a distillation, a training and a probe, section by section."""
    distillation = DistillationConfig.model_json_schema()
    training = CoreTrainingConfig.model_json_schema()
    probes = {f"Of a probe: {kind}": config.model_json_schema() for kind, config in CONFIGS.items()}
    wholes = [distillation, training, *probes.values()]
    schemas = {
        "Of a distillation": {**distillation, "description": "What `POST /distillations` takes."},
        "Of a training": {
            **training,
            "description": "What `POST /trainings` takes; what is not set is as in the core's own job.",
        },
        **probes,
        **{name: schema for whole in wholes for name, schema in whole["$defs"].items()},
    }
    where: dict[str, str] = {}
    for whole in wholes:
        for name, place in _places("", whole, whole["$defs"]):
            where.setdefault(name, place)
    titles = {name: f"{name}: {where[name]}" if name in where else name for name in schemas}

    def link(name: str) -> str:
        return f"[{name}](#{anchor(titles[name])})"

    parts = [
        f"## {titles[name]}\n\n{schema.get('description', '')}\n\n{fields_table(schema, link)}"
        for name, schema in schemas.items()
    ]
    return page(
        "Settings of a job",
        "the classes of `dmsae/config.py`, `dmsae/sources.py` and `dmsae/probe_config.py`",
        *parts,
    )


def presets_page() -> str:
    """Give every preset as it is."""
    head = 'Send `{"preset": NAME}` with whatever is to differ beside it.'
    parts = [f"## {name}\n\n```json\n{json.dumps(PRESETS[name], indent=2)}\n```" for name in PRESETS]
    return page("Presets", "`dmsae/presets.py`", head, *parts)


def _call(name: str, call: Json) -> str:
    rows = [
        (
            code(one["name"]),
            one["in"],
            type_words(one["schema"], _documents),
            code(json.dumps(one["schema"]["default"])) if one["schema"].get("default") is not None else "",
            one.get("description", ""),
        )
        for one in call.get("parameters", ())
    ]
    body = call.get("requestBody", {}).get("content", {})
    taken = [f"Body: {type_words(content['schema'], _documents)}" for content in body.values()]
    given = [
        f"{status}: {' or '.join(_answers(answer))}"
        for status, answer in call["responses"].items()
        if status not in ("4XX", "503")
    ]
    parameters = table(("parameter", "in", "type", "default", "is"), rows)
    parts = [f"### {name}", call.get("description", ""), parameters, *taken, f"Answers {'; '.join(given)}."]
    return "\n\n".join(filter(None, parts))


def _answers(answer: Json) -> list[str]:
    content = answer.get("content", {})
    words = [
        type_words(one["schema"], _documents)
        if kind == "application/json" and one.get("schema")
        else code(kind)
        for kind, one in content.items()
    ]
    return words or [answer.get("description", "").rstrip(".") or "nothing"]


def _documents(name: str) -> str:
    return f"[{name}](http_documents.md#{anchor(name)})"


def _here(name: str) -> str:
    return f"[{name}](#{anchor(name)})"


def _places(path: str, schema: Json, defs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give for each schema below the setting that it is of."""
    for key, field in schema.get("properties", {}).items():
        for name in filter(None, map(ref_name, _leaves(field))):
            place = f"{path}{key}"
            yield name, place
            yield from _places(f"{place}.", defs[name], defs)


def _leaves(field: Json) -> Iterator[Json]:
    kinds = [one for key in MANY_KINDS for one in field.get(key, ())]
    if "items" in field:
        kinds.append(field["items"])
    for one in kinds:
        yield from _leaves(one)
    if not kinds:
        yield field

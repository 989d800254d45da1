"""Which stored objects may a request name, as a text or an SAE to compare with, and which bytes are they?

Asked of the store before anything is written, so that every later cycle reads the same bytes or says that
they changed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dmsae.config import CycleConfig
from dmsae.errors import FieldProblem, InvalidConfig, NotFound, Unavailable
from dmsae.probe_config import OtherObjects, is_probe
from dmsae.service.objects import ObjectFacts, ObjectStore
from dmsae.service.requests import MOST_PROBLEMS, shown
from dmsae.service.uploads import UPLOADS, check_suffix
from dmsae.sources import ObjectText, StoredObject

TIMEOUT_S = 20.0
"""For all objects of one request together."""
TEXT, OTHER = "data.text.objects", "other.objects"
"""Where a config names objects."""

Config = TypeVar("Config", bound=CycleConfig)
Check = Callable[[str, str], list[FieldProblem]]
"""Refuses the name of a file of a kind that is not read there: a setting, and its value."""


def pin_objects(config: Config, store: ObjectStore, *, prefixes: Sequence[str]) -> Config:
    """Give the config with size and etag of every object of its text; without such a text, as it is.

    Raises:
        InvalidConfig: naming each object that may not be read, is not there, or holds other bytes than said.
        Unavailable: the store does not answer.
    """
    text = config.data.text
    if not isinstance(text, ObjectText):
        return config
    pinned = _pin(text.objects, store, prefixes, param=TEXT, check=check_suffix)
    data = config.data.model_copy(update={"text": text.model_copy(update={"objects": pinned})})
    return config.model_copy(update={"data": data})


def pin_other(other: OtherObjects, store: ObjectStore, *, prefixes: Sequence[str]) -> OtherObjects:
    """Give the files of an SAE with their sizes and etags.

    Raises:
        InvalidConfig: naming each object that may not be read, is not there, or holds other bytes than said.
        Unavailable: the store does not answer.
    """
    pinned = _pin(other.objects, store, prefixes, param=OTHER, check=lambda _param, _key: [])
    return other.model_copy(update={"objects": pinned})


def object_keys(config: CycleConfig) -> list[str]:
    """Give the keys of all objects that a config names."""
    text = config.data.text
    return [named.key for named in text.objects] if isinstance(text, ObjectText) else []


def named_objects(config: Mapping[str, Any]) -> dict[str, list[StoredObject]]:
    """Give the objects that a stored config has a trainer read, by where it names them.

    A probe reads a text only to compare firing.
    """
    found = {}
    text, other = config.get("data", {}).get("text", {}), config.get("other") or {}
    if text.get("source") == "objects" and (not is_probe(config) or config["kind"] == "match"):
        found[TEXT] = ObjectText.model_validate(text).objects
    if is_probe(config) and other.get("kind") == "objects":
        found[OTHER] = OtherObjects.model_validate(other).objects
    return found


def _pin(
    objects: Sequence[StoredObject],
    store: ObjectStore,
    prefixes: Sequence[str],
    *,
    param: str,
    check: Check,
) -> list[StoredObject]:
    problems: list[FieldProblem] = []
    for index, named in enumerate(objects):
        problems += _check_key(f"{param}.{index}.key", named.key, prefixes) or check(
            f"{param}.{index}.key", named.key
        )
    if problems:
        raise InvalidConfig(problems[:MOST_PROBLEMS])
    return _ask(objects, store, param=param)


def _check_key(param: str, key: str, prefixes: Sequence[str]) -> list[FieldProblem]:
    allowed = (UPLOADS, *prefixes)
    rule = None
    if not key.isprintable() or not {"", ".", ".."}.isdisjoint(key.split("/")):
        rule = "must be printable and have no empty part, '.' or '..' between its slashes"
    elif not key.startswith(allowed):
        rule = f"must begin with one of {', '.join(allowed)}"
    return [] if rule is None else [FieldProblem(param, shown(key), rule, "object_not_allowed")]


def _ask(objects: Sequence[StoredObject], store: ObjectStore, *, param: str) -> list[StoredObject]:
    deadline = time.monotonic() + TIMEOUT_S
    pinned, problems = [], []
    for index, named in enumerate(objects):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The object store is slow: it told of {index} of {len(objects)} files in time."
            )
        try:
            facts = store.describe(named.key)
        except NotFound:
            rule = (
                "there is no such object: put the file under the link that POST /uploads gives, then submit"
            )
            place = f"{param}.{index}.key"
            problems.append(FieldProblem(place, shown(named.key), rule, "object_not_found"))
        else:
            problems += _check_facts(f"{param}.{index}", named, facts)
            pinned.append(StoredObject(key=named.key, etag=facts.etag, size_bytes=facts.size_bytes))
    if problems:
        raise InvalidConfig(problems[:MOST_PROBLEMS])
    return pinned


def _check_facts(param: str, named: StoredObject, facts: ObjectFacts) -> list[FieldProblem]:
    given = {"etag": None if named.etag is None else named.etag.strip('"'), "size_bytes": named.size_bytes}
    stored = {"etag": facts.etag, "size_bytes": facts.size_bytes}
    return [
        FieldProblem(
            f"{param}.{name}",
            shown(value),
            f"the store holds {stored[name]!r}; leave it out to take what is there",
            "object_changed",
        )
        for name, value in given.items()
        if value is not None and value != stored[name]
    ]

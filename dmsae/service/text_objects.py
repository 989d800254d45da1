"""Which stored objects may a request name as its text, and which bytes are they?

Asked of the store before anything is written, so that every later cycle reads the same bytes or says that
they changed.
"""

import time
from collections.abc import Sequence
from typing import TypeVar

from dmsae.config import CycleConfig
from dmsae.errors import FieldProblem, InvalidConfig, NotFound, Unavailable
from dmsae.service.objects import ObjectFacts, ObjectStore
from dmsae.service.requests import MOST_PROBLEMS, shown
from dmsae.service.uploads import UPLOADS, check_suffix
from dmsae.sources import ObjectText, StoredObject

TIMEOUT_S = 20.0
"""For all objects of one request together."""

Config = TypeVar("Config", bound=CycleConfig)


def pin_objects(config: Config, store: ObjectStore, *, prefixes: Sequence[str]) -> Config:
    """Give the config with size and etag of every object of its text; without such a text, as it is.

    Raises:
        InvalidConfig: naming each object that may not be read, is not there, or holds other bytes than said.
        Unavailable: the store does not answer.
    """
    text = config.data.text
    if not isinstance(text, ObjectText):
        return config
    problems = [problem for i, named in enumerate(text.objects) for problem in _check_key(i, named, prefixes)]
    if problems:
        raise InvalidConfig(problems[:MOST_PROBLEMS])
    pinned = _ask(text.objects, store)
    data = config.data.model_copy(update={"text": text.model_copy(update={"objects": pinned})})
    return config.model_copy(update={"data": data})


def object_keys(config: CycleConfig) -> list[str]:
    """Give the keys of all objects that a config names."""
    text = config.data.text
    return [named.key for named in text.objects] if isinstance(text, ObjectText) else []


def _check_key(index: int, named: StoredObject, prefixes: Sequence[str]) -> list[FieldProblem]:
    param, key = f"data.text.objects.{index}.key", named.key
    allowed = (UPLOADS, *prefixes)
    rule = None
    if not key.isprintable() or not {"", ".", ".."}.isdisjoint(key.split("/")):
        rule = "must be printable and have no empty part, '.' or '..' between its slashes"
    elif not key.startswith(allowed):
        rule = f"must begin with one of {', '.join(allowed)}"
    if rule is not None:
        return [FieldProblem(param, shown(key), rule, "object_not_allowed")]
    return check_suffix(param, key)


def _ask(objects: Sequence[StoredObject], store: ObjectStore) -> list[StoredObject]:
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
            param = f"data.text.objects.{index}.key"
            problems.append(FieldProblem(param, shown(named.key), rule, "object_not_found"))
        else:
            problems += _check_facts(index, named, facts)
            pinned.append(StoredObject(key=named.key, etag=facts.etag, size_bytes=facts.size_bytes))
    if problems:
        raise InvalidConfig(problems[:MOST_PROBLEMS])
    return pinned


def _check_facts(index: int, named: StoredObject, facts: ObjectFacts) -> list[FieldProblem]:
    given = {"etag": None if named.etag is None else named.etag.strip('"'), "size_bytes": named.size_bytes}
    stored = {"etag": facts.etag, "size_bytes": facts.size_bytes}
    return [
        FieldProblem(
            f"data.text.objects.{index}.{name}",
            shown(value),
            f"the store holds {stored[name]!r}; leave it out to take what is there",
            "object_changed",
        )
        for name, value in given.items()
        if value is not None and value != stored[name]
    ]

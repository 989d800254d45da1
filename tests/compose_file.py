"""docker-compose.yml and the Dockerfiles as tests read them: variables put in as Compose does."""

import importlib.metadata
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<rule>:\?|:-)(?P<text>[^}]*))?\})")


class MissingVariable(Exception):
    """A variable without which nothing starts is unset or empty."""


def load_raw() -> dict[str, Any]:
    """Read the file with its variables as they stand."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return content


def load(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read the file as Compose does: every variable put in, whichever profile asks for it.

    Raises:
        MissingVariable: one with `:?` is unset or empty.
    """
    content: dict[str, Any] = interpolate(load_raw(), environ)
    return content


def interpolate(value: Any, environ: Mapping[str, str]) -> Any:
    """Put variables into every text of a document."""
    if isinstance(value, dict):
        return {key: interpolate(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environ) for item in value]
    return VARIABLE.sub(lambda found: _put_in(found, environ), value) if isinstance(value, str) else value


def _put_in(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found["dollar"]:
        return "$"
    given = environ.get(found["name"], "")
    if found["rule"] == ":?" and not given:
        raise MissingVariable(f"{found['name']}: {found['text']}")
    return given or (found["text"] or "" if found["rule"] == ":-" else "")


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Give every text of a document with the path to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts(item, f"{path}.{index}")
    elif isinstance(value, str):
        yield path.lstrip("."), value


def required_variables() -> set[str]:
    """Name the variables without which nothing starts."""
    found = (match for _, text in texts(load_raw()) for match in VARIABLE.finditer(text))
    return {match["name"] for match in found if match["rule"] == ":?"}


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of one Dockerfile, continuation lines joined."""

    instructions: tuple[tuple[str, str], ...]

    def all_of(self, name: str) -> list[str]:
        """Give the arguments of every instruction of this name."""
        return [text for keyword, text in self.instructions if keyword == name]

    def command(self) -> list[str]:
        """Give what its containers run."""
        (text,) = self.all_of("CMD")
        words: list[str] = json.loads(text)
        return words

    def health_check(self) -> list[str]:
        """Give the command of its health check."""
        (text,) = self.all_of("HEALTHCHECK")
        words: list[str] = json.loads(text.partition("CMD")[2])
        return words

    def environment(self) -> dict[str, str]:
        """Give the variables that it sets."""
        return dict(word.split("=", 1) for text in self.all_of("ENV") for word in shlex.split(text))


def read_dockerfile(name: str) -> Dockerfile:
    """Read what the image of a Dockerfile of the project is made of: its last stage."""
    return read_stages(name)[-1]


def read_stages(name: str) -> list[Dockerfile]:
    """Read all stages of a Dockerfile of the project."""
    lines = (line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, joined.splitlines()):
        keyword, text = line.split(maxsplit=1)
        if keyword == "FROM":
            stages.append([])
        stages[-1].append((keyword, text))
    return [Dockerfile(tuple(stage)) for stage in stages]


def packages_of(extra: str) -> set[str]:
    """Name every package that an image with this extra of ours holds, by what is installed here."""
    found: set[str] = set()
    waiting: list[tuple[str, frozenset[str]]] = [("dmsae", frozenset({extra}))]
    while waiting:
        name, extras = waiting.pop()
        for requirement in map(Requirement, _requirements(name, extras)):
            chosen = [{"extra": one} for one in (*extras, "")]
            if requirement.marker is not None and not any(map(requirement.marker.evaluate, chosen)):
                continue
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if key not in found or requirement.extras:
                found.add(key)
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def _requirements(name: str, extras: frozenset[str]) -> list[str]:
    """Give a package's own requirements; ours as they stand now, not as they were installed."""
    if name != "dmsae":
        return importlib.metadata.requires(name) or []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [text for extra in extras for text in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *optional]

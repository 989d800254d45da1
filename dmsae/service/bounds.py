"""Which settings are larger than anything that could run, or no text? Refused before anybody uses them."""

from collections.abc import Iterator
from typing import Any

from dmsae.config import CycleConfig
from dmsae.errors import FieldProblem
from dmsae.service.known_models import ModelFacts
from dmsae.service.memory import peak_memory
from dmsae.service.requests import LONE_SURROGATE, shown

LARGEST_INTEGER = 2**53 - 1
"""The largest that every reader of JSON keeps as it is."""
LARGEST_MEMORY_BYTES = 1 << 50
"""1 PiB: no device has so much."""


def find_unfit(config: CycleConfig) -> list[FieldProblem]:
    """Give the integers that not every reader of JSON keeps, and the texts that nothing can store."""
    problems = []
    for place, value in _leaves(config.model_dump(mode="python"), ""):
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            problems.append(FieldProblem(place, shown(value), f"must be at most {LARGEST_INTEGER}"))
        elif isinstance(value, str) and ("\0" in value or LONE_SURROGATE.search(value)):
            problems.append(FieldProblem(place, shown(value), "must be text: no NUL, no half of a pair"))
    return problems


def find_too_large(config: CycleConfig, facts: ModelFacts) -> list[FieldProblem]:
    """Say so if a cycle would take more memory than there is."""
    peak = peak_memory(config, facts)
    if peak is None or peak.device <= LARGEST_MEMORY_BYTES:
        return []
    rule = (
        f"would take {peak.device:.1e} bytes while {peak.phase}, more than any device has: lower widths, "
        "batches or contexts"
    )
    return [FieldProblem("device", config.device, rule)]


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{place}.{index}")
    else:
        yield place, value

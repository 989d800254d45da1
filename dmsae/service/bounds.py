"""Which settings are larger than anything that could run? Refused before anybody computes with them."""

from collections.abc import Iterator
from typing import Any

from dmsae.config import CycleConfig
from dmsae.errors import FieldProblem
from dmsae.service.known_models import ModelFacts
from dmsae.service.memory import peak_memory
from dmsae.service.requests import shown

LARGEST_INTEGER = 2**53 - 1
"""The largest that every reader of JSON keeps as it is."""
LARGEST_MEMORY_BYTES = 1 << 50
"""1 PiB: no device has so much."""


def find_too_large(config: CycleConfig, facts: ModelFacts) -> list[FieldProblem]:
    """Give the integers that not every reader keeps, or else what would take more memory than there is."""
    rule = f"must be at most {LARGEST_INTEGER}"
    settings = config.model_dump(mode="python")
    problems = [FieldProblem(place, shown(value), rule) for place, value in _large_integers(settings, "")]
    if problems:
        return problems
    peak = peak_memory(config, facts)
    if peak is None or peak.device <= LARGEST_MEMORY_BYTES:
        return []
    rule = (
        f"would take {peak.device:.1e} bytes while {peak.phase}, more than any device has: lower widths, "
        "batches or contexts"
    )
    return [FieldProblem("device", config.device, rule)]


def _large_integers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _large_integers(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _large_integers(inner, f"{place}.{index}")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        yield place, value

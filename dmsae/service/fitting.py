"""What would have fitted, where a trainer ran out of memory? By the same estimate that a dry run gives."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmsae.config import CycleConfig, CycleSpec
from dmsae.errors import InvalidConfig
from dmsae.service.known_models import ModelFacts, find_facts
from dmsae.service.memory import Peak, peak_memory

GB = 1e9
SETTINGS = (("training", "batch_tokens"), ("activations", "model_batch_contexts"))
"""What may be lowered and leaves the SAE what it is."""


def say_what_fits(spec: dict[str, Any], device_bytes: int | None, allowed_roots: Sequence[Path]) -> str:
    """Say what a cycle was estimated to take, what its device has, and with which setting it would fit.

    `device_bytes` is the device's memory, None where it has none of its own.
    """
    try:
        config = CycleSpec.model_validate(spec).config
        facts = find_facts(config.model, allowed_roots)
    except (ValidationError, InvalidConfig):
        return _said(None, device_bytes)
    peak = peak_memory(config, facts)
    if peak is None or device_bytes is None:
        return _said(peak, device_bytes)
    if peak.device <= device_bytes:
        return f"{_said(peak, device_bytes)} By that it fits: something else takes the rest."
    return f"{_said(peak, device_bytes)} {_advice(config, facts, device_bytes)}"


def _said(peak: Peak | None, device_bytes: int | None) -> str:
    has = "" if device_bytes is None else f"The device has {device_bytes / GB:.2f} GB. "
    if peak is None:
        return f"{has}There is no estimate: the sizes of the model are not known here."
    return f"{has}The cycle is estimated to take {peak.device / GB:.2f} GB, most while {peak.phase}."


def _advice(config: CycleConfig, facts: ModelFacts, device_bytes: int) -> str:
    """Name the largest setting that fits, each by itself, else all at once, or say that there is none."""
    found = []
    for setting in SETTINGS:
        fitting = _largest(config, facts, device_bytes, settings=[setting])
        if fitting is not None:
            found.append(fitting)
    if not found:
        fitting = _largest(config, facts, device_bytes, settings=SETTINGS)
        if fitting is None:
            names = " and ".join(map(".".join, SETTINGS))
            return f"No {names} fits: lower sae.n_latents or data.context_length, or use a larger device."
        found.append(fitting)
    return f"It would fit with {' or with '.join(found)}."


def _largest(
    config: CycleConfig, facts: ModelFacts, device_bytes: int, *, settings: Sequence[tuple[str, str]]
) -> str | None:
    """Name the largest values of `settings`, all lowered to one share of theirs, at which the cycle fits."""

    def lowered(share: float) -> CycleConfig:
        update = {}
        for section, name in settings:
            part = getattr(config, section)
            update[section] = part.model_copy(update={name: max(1, int(share * getattr(part, name)))})
        return config.model_copy(update=update)

    def fits(share: float) -> bool:
        peak = peak_memory(lowered(share), facts)
        return peak is not None and peak.device <= device_bytes

    largest = max(getattr(getattr(config, section), name) for section, name in settings)
    share = _bisected(fits, n_steps=largest.bit_length() + 4)
    if share is None:
        return None
    made = lowered(share)
    return " and ".join(
        f"{section}.{name} = {getattr(getattr(made, section), name)} (not "
        f"{getattr(getattr(config, section), name)})"
        for section, name in settings
    )


def _bisected(fits: Callable[[float], bool], *, n_steps: int) -> float | None:
    """Find about the largest share between 0 and 1 that fits; None where not even 0 does."""
    if not fits(0.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(n_steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

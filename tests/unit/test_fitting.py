"""Claims about what is said where a trainer ran out of memory: estimate, device, and what would fit."""

import re
from pathlib import Path
from typing import Any

import pytest

from bench.memory import FEW, merge
from dmsae.config import DistillationConfig
from dmsae.presets import PRESETS
from dmsae.service.fitting import say_what_fits
from dmsae.service.known_models import find_facts
from dmsae.service.memory import Peak, peak_memory


def spec_of(**changes: Any) -> dict[str, Any]:
    settings = merge(merge(PRESETS["demo"], FEW), changes)
    return {"job_id": "job", "cycle_index": 0, "config": settings}


def peak_of(spec: dict[str, Any], **changes: Any) -> Peak:
    config = DistillationConfig.model_validate(merge(spec["config"], changes))
    peak = peak_memory(config, find_facts(config.model, []))
    assert peak is not None
    return peak


LARGE_BATCH = {"sae": {"n_latents": 65_536}, "training": {"batch_tokens": 65_536, "step": "plain"}}
MANY_CONTEXTS = {"activations": {"model_batch_contexts": 4096}}


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (LARGE_BATCH, "training.batch_tokens"),
        (MANY_CONTEXTS, "activations.model_batch_contexts"),
    ],
)
def test_the_largest_setting_that_fits_by_the_same_estimate_is_named(
    changes: dict[str, Any], setting: str
) -> None:
    spec = spec_of(**changes)
    peak = peak_of(spec)
    device_bytes = peak.device // 2
    said = say_what_fits(spec, device_bytes, [])
    assert f"The device has {device_bytes / 1e9:.2f} GB." in said
    assert f"estimated to take {peak.device / 1e9:.2f} GB, most while {peak.phase}" in said
    section, name = setting.split(".")
    value, given = map(int, re.search(rf"{setting} = (\d+) \(not (\d+)\)", said).groups())
    assert given == changes[section][name]
    assert peak_of(spec, **{section: {name: value}}).device <= device_bytes
    more = value + 1 + value // 100
    assert peak_of(spec, **{section: {name: more}}).device > device_bytes


def test_where_each_alone_is_too_little_both_are_lowered_together() -> None:
    spec = spec_of(**LARGE_BATCH, **MANY_CONTEXTS)
    lowest = max(
        peak_of(spec, **part).device
        for part in ({"training": {"batch_tokens": 1}}, {"activations": {"model_batch_contexts": 1}})
    )
    both = {"training": {"batch_tokens": 1}, "activations": {"model_batch_contexts": 1}}
    device_bytes = (peak_of(spec, **both).device + min(lowest, peak_of(spec).device)) // 2
    said = say_what_fits(spec, device_bytes, [])
    values = dict(re.findall(r"(\w+\.\w+) = (\d+) \(not", said))
    changes: dict[str, Any] = {}
    for setting, value in values.items():
        section, name = setting.split(".")
        changes[section] = {name: int(value)}
    assert peak_of(spec, **changes).device <= device_bytes


def test_where_no_batch_is_small_enough_that_is_said() -> None:
    said = say_what_fits(spec_of(), 10_000_000, [])
    assert "No training.batch_tokens and activations.model_batch_contexts fits" in said
    assert "use a larger device" in said


def test_where_the_estimate_fits_something_else_is_named_as_the_cause() -> None:
    said = say_what_fits(spec_of(), 10**12, [])
    assert "By that it fits: something else takes the rest." in said


@pytest.mark.parametrize("spec", [{"config": {"fake": {}}}, {"job_id": "job", "config": {"cores": []}}])
def test_without_an_estimate_that_is_said(spec: dict[str, Any]) -> None:
    assert say_what_fits(spec, 2 * 10**9, [Path("/")]) == (
        "The device has 2.00 GB. There is no estimate: the sizes of the model are not known here."
    )


def test_a_device_without_memory_of_its_own_is_left_out() -> None:
    assert say_what_fits(spec_of(), None, []).startswith("The cycle is estimated to take")

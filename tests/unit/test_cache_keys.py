"""Which cycles share a harvest, and which must not."""

from typing import Any

import pytest

from dmsae.config import DistillationConfig
from dmsae.presets import PRESETS
from dmsae.service.cache_keys import cache_key, latest_keys


def config(**changes: Any) -> DistillationConfig:
    settings = {**PRESETS["demo"]}
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return DistillationConfig.model_validate(settings)


def test_a_sweep_of_k_and_seeds_has_one_key() -> None:
    keys = {cache_key(config(seed=seed, sae={"k": k})) for seed in (0, 1) for k in (8, 16, 32)}
    assert len(keys) == 1
    assert set(keys.pop()) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "changes",
    [
        {"activations": {"layer": 3}},
        {"activations": {"model_batch_contexts": 8}},
        {"data": {"context_length": 64}},
        {"data": {"split": [0.6, 0.2, 0.2]}},
        {"n_threads": 1},
        {"device": "cuda"},
    ],
)
def test_whatever_changes_the_activations_changes_the_key(changes: dict[str, Any]) -> None:
    assert cache_key(config(**changes)) != cache_key(config())


def test_the_newest_key_comes_first_and_the_oldest_is_forgotten() -> None:
    keys: tuple[str, ...] = ()
    for key in ("a", "b", "a", "c"):
        keys = latest_keys(keys, key, n_kept=2)
    assert keys == ("c", "a")

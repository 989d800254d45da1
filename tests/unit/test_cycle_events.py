"""Claims about what a reader of a cycle's results is told, and what is not said without reason."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmsae.cycle_events import tell_dense, tell_identity_lost, tell_over_budget
from dmsae.metrics import Drift
from dmsae.sparsity import Calibration
from tests.trained import EXEMPT, make_config, name_of
from tests.unit.test_sae import make_core

K, N_TOKENS = 8, 100
K_MIN = 2


class Events(dict[str, tuple[str, dict[str, Any]]]):
    """What was said, by its kind."""

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        self[kind] = (message, data)


def run(*, n_core: int = 4, **sae: Any) -> Any:
    config = make_config(sae={"k": K, "block_widths": [10, 20], **sae})
    core = make_core(6, n_core) if n_core else None
    return SimpleNamespace(config=config, core=core, report=Events())


def over_budget(n_core_active: int, *, budget: int = K_MIN * N_TOKENS, **settings: Any) -> Events:
    started = run(**settings)
    tell_over_budget(started, Calibration(torch.zeros(40), N_TOKENS, n_core_active, budget))
    return started.report


@pytest.mark.parametrize("sparsity", EXEMPT, ids=name_of)
def test_a_core_that_leaves_less_than_the_least_budget_is_told_with_the_figures(sparsity) -> None:
    message, data = over_budget((K - K_MIN) * N_TOKENS + 1, **sparsity)["l0_over_budget"]
    assert data == {"l0_core": 6.01, "k": K, "k_min": 2.0, "noncore_budget": 2.0}
    for figure in ("6.01", "8 - 2", "2.00", "8.01", "not 8", "batch_topk"):
        assert figure in message
    assert not over_budget((K - K_MIN) * N_TOKENS, **sparsity)


def test_a_core_that_competes_or_none_is_never_over_the_budget() -> None:
    assert not over_budget(0, budget=K * N_TOKENS, core_sparsity="batch_topk")
    for sparsity in EXEMPT:
        assert not over_budget(0, budget=K * N_TOKENS, n_core=0, **sparsity)


def dense(densities: list[float], **settings: Any) -> Events:
    started = run(**settings)
    tell_dense(started, SimpleNamespace(densities=torch.tensor(densities, dtype=torch.float64)))
    return started.report


@pytest.mark.parametrize(
    ("core_sparsity", "remedy"), [("exempt", "batch_topk"), ("batch_topk", "block_widths")]
)
def test_a_core_of_which_half_the_latents_fire_at_most_tokens_is_told(core_sparsity, remedy) -> None:
    message, data = dense([0.1, 0.5, 0.52, 0.9, 0.0, 0.0], core_sparsity=core_sparsity)["dense_core"]
    assert data == {"core_density_given": 0.51, "bound": 0.5, "n_core": 4}
    assert "4 latents" in message
    assert "51.0%" in message
    assert "50%" in message
    assert remedy in message
    assert not dense([0.1, 0.5, 0.5, 0.9, 1.0, 1.0], core_sparsity=core_sparsity)


def test_latents_beside_the_core_may_be_dense_and_without_a_core_nothing_is_told() -> None:
    assert not dense([0.1, 0.1, 0.1, 0.1, 1.0, 1.0])
    assert not dense([1.0] * 6, n_core=0)


def lost(jaccards: list[float | None], parents: list[int | None]) -> Events:
    started = run()
    core = [SimpleNamespace(parent_core_index=parent) for parent in parents]
    n_kept = sum(parent is not None for parent in parents)
    drift = Drift([1.0] * len(jaccards), jaccards)
    tell_identity_lost(started, SimpleNamespace(core=core, n_kept=n_kept), SimpleNamespace(drift=drift))
    return started.report


def test_kept_latents_that_fire_at_other_tokens_are_told() -> None:
    message, data = lost([0.6, 0.1, 0.3], [0, 2, None])["identity_lost"]
    assert data == {"firing_jaccard_median": pytest.approx(0.45), "bound": 0.5, "n_kept": 2}
    assert "0.45" in message
    assert "2 latents" in message


def test_identities_are_not_called_lost_without_a_reason() -> None:
    assert not lost([0.6, 0.1, 0.4], [0, 2, None])  # the median of 0.6 and 0.4 is not below a half
    assert not lost([0.1, 0.1, 0.1], [None, None])  # none was kept
    assert not lost([None, 0.1], [0, None])  # fires in neither SAE
    assert not lost([], [])


def test_cycle_0_has_no_identity_to_lose() -> None:
    started = run(n_core=0)
    selection = SimpleNamespace(core=[SimpleNamespace(parent_core_index=None)], n_kept=0)
    tell_identity_lost(started, selection, SimpleNamespace(drift=None))
    assert not started.report

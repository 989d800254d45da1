"""Claims about when the loops of a training are compiled, and for what: in every process, ahead, once."""

from collections.abc import Callable
from typing import Any

import numba
import pytest
import torch

from dmsae import dead_gradients, sparse_kernels
from dmsae.compiling import begin_compiling, compile_loops, kinds_of_estimates, loops
from dmsae.losses import total_loss
from dmsae.row_workers import RowWorkers
from dmsae.screening import Screen
from dmsae.sparse_step import SparseStep
from tests.trained import make_config, random_x
from tests.unit.test_sparse_step import start_of

BOTH = [numba.int32, numba.float32]


def test_a_training_calls_each_loop_with_the_types_that_it_was_compiled_for_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: dict[str, set[tuple[Any, ...]]] = {}

    def recorded(name: str, loop: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            called.setdefault(name, set()).add(tuple(numba.typeof(arg) for arg in args))
            return loop(*args)

        return call

    compiled = list(loops(BOTH))
    for loop, _ in compiled:
        monkeypatch.setattr(sparse_kernels, loop.__name__, recorded(loop.__name__, loop))
    config = make_config()
    for is_int8, many in ((True, 0), (False, 100)):
        monkeypatch.setattr(dead_gradients, "MANY", many)
        step = SparseStep(start_of(config, 5, 12), config)
        step._screen = Screen(RowWorkers(), is_int8=is_int8)
        step.select(random_x(32))
        losses = step.losses(is_dead=torch.arange(40) >= 30)
        step.update(total_loss(losses, aux_coefficient=1.0, is_mean=False), lr=1e-3)

    expected: dict[str, set[tuple[Any, ...]]] = {}
    for loop, types in compiled:
        expected.setdefault(loop.__name__, set()).add(tuple(types))
    assert called == expected


def test_what_is_compiled_ahead_is_not_compiled_again_and_never_kept_on_disk() -> None:
    compile_loops([numba.float32])
    for loop, types in loops([numba.float32]):
        assert tuple(types) in loop.overloads
        assert loop.stats.cache_path is None


def test_compiling_begins_beside_the_cycle_and_only_for_a_step_that_is_compiled() -> None:
    thread = begin_compiling(make_config(step="fast"))
    assert thread is not None
    thread.join()
    assert all(tuple(types) in loop.overloads for loop, types in loops([numba.float32]))
    assert begin_compiling(make_config(step="plain")) is None


def test_loops_over_int8_products_are_compiled_only_where_there_may_be_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = make_config(), make_config(batch_tokens=2048, sae={"n_latents": 16384})
    monkeypatch.setattr("dmsae.compiling.has_int8_instructions", lambda: True)
    assert kinds_of_estimates(small) == [numba.float32]
    assert kinds_of_estimates(large) == BOTH
    monkeypatch.setattr("dmsae.compiling.has_int8_instructions", lambda: False)
    assert kinds_of_estimates(large) == [numba.float32]

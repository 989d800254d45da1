"""Claims about the search for the inference threshold: the screened one finds what the dense one finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsae.errors import CycleFailed
from dmsae.sparse_step import SparseStep
from dmsae.sparsity import Calibration, EncodeAbove, Sparsity, calibrate, encode_all
from tests.trained import SPARSITIES, Batches, make_config, random_x
from tests.unit.test_sparse_step import configs, start_of


def both(step: SparseStep, x: Tensor, sparsity: Sparsity, *, batch_tokens: int) -> list[Calibration]:
    """Calibrate by the dense product, then by the step's own screening."""
    sae, batches = step.sae(), x.split(batch_tokens)
    return [
        calibrate(sae, batches, sparsity, n_tokens=len(x), encode=encode)
        for encode in (None, step.encode_above)
    ]


def whole_(step: SparseStep) -> None:
    """Make weights small whole numbers: exact in float32, so that ties are ties however they are summed."""
    for name, parameter in step.parameters.items():
        parameter.copy_((3 * parameter).round() if name != "b_dec" else torch.zeros_like(parameter))


@settings(deadline=None, max_examples=60)
@given(
    drawn=configs(),
    n_tokens=st.integers(1, 60),
    is_whole=st.booleans(),
    shift=st.sampled_from([0.0, -2.0, 2.0, -50.0]),
    loud=st.sampled_from([1.0, 8.0]),
)
def test_screening_finds_the_same_threshold_as_the_dense_product(drawn, n_tokens, is_whole, shift, loud):
    config, n_core, d_model = drawn
    step = SparseStep(start_of(config, n_core, d_model), config)
    step.parameters["b_enc"].add_(shift)
    x = random_x(n_tokens, d_model=d_model)
    if is_whole:
        whole_(step)
        x = (2 * x).round()
    batch_tokens = config.training.batch_tokens
    x[:batch_tokens] *= loud  # a guess made of these is too high for the others
    sparsity = Sparsity.of(config.sae, n_core=n_core)
    dense, screened = both(step, x, sparsity, batch_tokens=batch_tokens)
    assert (dense.n_tokens, dense.n_exempt_active, dense.budget) == screened[1:]
    if is_whole:
        assert torch.equal(dense.threshold, screened.threshold)
    torch.testing.assert_close(dense.threshold, screened.threshold, rtol=1e-5, atol=1e-5 * (1 + abs(shift)))


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda sparsity: "-".join(sparsity.values()))
def test_what_passes_the_screened_threshold_is_the_budget(sparsity: dict[str, str]) -> None:
    config = make_config(sae=sparsity)
    step = SparseStep(start_of(config, 5, 12), config)
    x = random_x(500)
    found = both(step, x, Sparsity.of(config.sae, n_core=5), batch_tokens=32)[1]
    n_exempt = 0 if sparsity["core_sparsity"] == "batch_topk" else 5
    passing = step.sae().pre_acts(x) > found.threshold
    assert int(passing[:, n_exempt:].sum()) == found.budget
    assert int(passing[:, :n_exempt].sum()) == found.n_exempt_active


class Counted:
    """Batches that count how often they are gone over."""

    def __init__(self, x: Tensor, batch_tokens: int) -> None:
        self.batches, self.n_times = x.split(batch_tokens), 0

    def __iter__(self):
        self.n_times += 1
        return iter(self.batches)


@pytest.mark.parametrize(("loud", "n_times"), [(1.0, 1), (50.0, 2)])
def test_a_guess_that_was_too_high_is_not_believed(loud: float, n_times: int) -> None:
    config = make_config()
    step = SparseStep(start_of(config, 0, 12), config)
    x, sparsity = random_x(320), Sparsity.of(config.sae, n_core=0)
    x[:32] *= loud
    sae, expected = step.sae(), step.sae().pre_acts(x).flatten().sort(descending=True).values
    for encode in (encode_all(sae, sparsity), step.encode_above):
        batches = Counted(x, 32)
        found = calibrate(sae, batches, sparsity, n_tokens=320, encode=encode)
        assert batches.n_times == n_times
        torch.testing.assert_close(found.threshold[0], expected[sparsity.k * 320 - 1])


def test_only_what_lies_above_the_guess_is_looked_at_after_it() -> None:
    config = make_config()
    step = SparseStep(start_of(config, 0, 12), config)
    x, sparsity, floors = random_x(320), Sparsity.of(config.sae, n_core=0), []

    def encode(x: Tensor, *, floor: float, n_most: int) -> tuple[int, Tensor]:
        floors.append(floor)
        return step.encode_above(x, floor=floor, n_most=n_most)

    watched: EncodeAbove = encode
    found = calibrate(step.sae(), x.split(32), sparsity, n_tokens=320, encode=watched)
    assert floors[0] == 0.0
    assert all(0 < floor <= found.threshold[0] for floor in floors[1:])
    assert floors == sorted(floors)


def test_weights_that_are_not_finite_end_the_search_with_a_named_error() -> None:
    config = make_config()
    step = SparseStep(start_of(config, 0, 12), config)
    step.parameters["W_enc"][3, 2] = torch.nan
    with pytest.raises(CycleFailed, match="not finite") as failed:
        both(step, random_x(64), Sparsity.of(config.sae, n_core=0), batch_tokens=32)
    assert failed.value.failure == "non_finite"


def test_a_trainer_with_either_step_calibrates_alike() -> None:
    from dmsae.training import Trainer

    thresholds = []
    for step in ("plain", "fast"):
        config = make_config(step=step, lr=1e-4)
        trainer = Trainer(config, None, Batches(random_x(320)), seed=0)
        list(trainer.run())
        thresholds.append(trainer.finish().sae.threshold)
    torch.testing.assert_close(*thresholds, rtol=1e-3, atol=0)

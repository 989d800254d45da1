"""Claims about the GPU's step: it is the plain step over dense matrices, but for float32 rounding.

Both run on the GPU; with TRITON_INTERPRET=1 both run on the CPU, the kernels in Triton's interpreter: that is
how `tests/unit/test_gpu_kernels.py` runs these. Tolerance: 1e-5 of the largest entry, as for the CPU's step;
all sums are float32 and differ in their order alone.
"""

import copy
import importlib.metadata
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.losses import total_loss
from dmsae.plain_step import PlainStep
from dmsae.row_adam import Gradient
from dmsae.sparse_kernels import adam_rates
from dmsae.steps import Step
from dmsae.training import make_step
from tests.gpu.triton_folder import TRITON
from tests.trained import SPARSITIES, assert_same_bits, make_config, name_of, random_x, tensors_of
from tests.unit.test_sparse_step import (
    AUX,
    ROUNDING,
    assert_same_step,
    close,
    configs,
    copy_weights,
    start_of,
)

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(
    not IS_INTERPRETED and not torch.cuda.is_available(),
    reason="torch finds no CUDA device here; `make kernels` tries these kernels out on the CPU",
)
all_sparsities = pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)


def steps_of(config: DistillationConfig, *, n_core: int, d_model: int = 12) -> tuple[PlainStep, Step]:
    from dmsae.gpu_step import GpuStep

    return tuple(way(start_of(config, n_core, d_model).to(DEVICE), config) for way in (PlainStep, GpuStep))


def batch(n_tokens: int, *, d_model: int = 12, seed: int = 0) -> Tensor:
    return random_x(n_tokens, d_model=d_model, seed=seed).to(DEVICE)


def dead_of(n_latents: int, n_alive: int) -> Tensor:
    return torch.arange(n_latents, device=DEVICE) >= n_alive


def take(step: Step, x: Tensor, *, is_dead: Tensor, lr: float = 1e-3) -> Tensor:
    step.select(x)
    losses = step.losses(is_dead=is_dead)
    return step.update(total_loss(losses, aux_coefficient=AUX, is_mean=False), lr=lr)


@settings(deadline=None, max_examples=5 if IS_INTERPRETED else 100)
@given(
    drawn=configs(),
    seed=st.integers(0, 1000),
    share_dead=st.sampled_from([0.0, 0.3, 1.0]),
    shift=st.sampled_from([0.0, 0.3, -50.0, 50.0]),
)
def test_selection_losses_and_gradients_equal_those_of_autograd_over_dense_matrices(
    drawn: tuple[DistillationConfig, int, int], seed: int, share_dead: float, shift: float
) -> None:
    config, n_core, d_model = drawn
    plain, gpu = steps_of(config, n_core=n_core, d_model=d_model)
    with torch.no_grad():
        for way in (plain, gpu):
            way.parameters["b_enc"].add_(shift)  # none or all of them positive, too
    is_dead = torch.rand(config.sae.n_latents, generator=torch.Generator().manual_seed(seed)) < share_dead
    is_dead[: n_core if config.sae.core_sparsity == "exempt" else 0] = False
    is_mean = config.sae.prefix_loss == "mean"
    for step in range(1 if IS_INTERPRETED else 2):
        x = batch(config.training.batch_tokens, d_model=d_model, seed=seed + step)
        tolerance = ROUNDING * (1 + abs(shift))
        is_same = assert_same_step(
            plain, gpu, x, is_dead=is_dead.to(DEVICE), is_mean=is_mean, tolerance=tolerance
        )
        if not is_same:
            return
        copy_weights(plain, gpu)


EDGES = {
    "one token": {"batch_tokens": 1},
    "all latents active": {"k": 40, "shift": 50.0, "batch_tokens": 5},
    "none active": {"shift": -50.0, "batch_tokens": 5},
    "no core": {"n_core": 0},
    "a core of most of the first prefix": {"n_core": 22, "block_widths": [2, 8]},
    "prefixes of one latent each": {"n_core": 0, "block_widths": [1, 2, 3, 4, 5], "k": 1},
    "all latents dead": {"n_alive": 0, "core_sparsity": "batch_topk"},
    "wider than the rows that are read together": {"d_model": 300, "batch_tokens": 4},
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_are_no_exceptions(edge: str) -> None:
    given_: dict = {"n_core": 5, "shift": 0.0, "n_alive": 36, "batch_tokens": 9, "d_model": 12, **EDGES[edge]}
    sae = {name: given_[name] for name in ("k", "block_widths", "core_sparsity") if name in given_}
    config = make_config(
        sae={"core_sparsity": "exempt", **sae}, batch_tokens=given_["batch_tokens"], aux_coefficient=AUX
    )
    plain, gpu = steps_of(config, n_core=given_["n_core"], d_model=given_["d_model"])
    with torch.no_grad():
        for way in (plain, gpu):
            way.parameters["b_enc"].add_(given_["shift"])
    x, is_dead = batch(given_["batch_tokens"], d_model=given_["d_model"]), dead_of(40, given_["n_alive"])
    tolerance = ROUNDING * (1 + abs(given_["shift"]))
    assert assert_same_step(plain, gpu, x, is_dead=is_dead, is_mean=False, tolerance=tolerance)


@all_sparsities
def test_weights_stay_together_over_steps(sparsity: dict[str, str]) -> None:
    n_steps = 2 if IS_INTERPRETED else 20
    config = make_config(sae=sparsity, aux_coefficient=AUX, grad_clip_norm=0.3)
    plain, gpu = steps_of(config, n_core=5)
    for number in range(n_steps):
        for way in (plain, gpu):
            take(way, batch(6, seed=number), is_dead=dead_of(40, 35))
    one, other = tensors_of(plain.sae()), tensors_of(gpu.sae())
    assert torch.equal(one["W_enc"][:, :5], other["W_enc"][:, :5])
    # Adam divides by gradients near 0, where rounding is all there is: a few thousandths of 20 steps of 1e-3
    for name, tensor in one.items():
        close(tensor, other[name], name, tolerance=1e-4)
    torch.testing.assert_close(other["W_dec"].norm(dim=1), torch.ones(40, device=DEVICE), rtol=0, atol=1e-6)


def test_equal_activations_at_the_border_are_kept_by_lower_token_then_latent() -> None:
    config = make_config(sae={"k": 1, "n_latents": 6, "block_widths": [2]}, batch_tokens=4)
    _, gpu = steps_of(config, n_core=0, d_model=3)
    gpu.parameters["W_enc"].zero_()
    gpu.parameters["b_enc"].fill_(0.25)
    assert gpu.select(batch(4, d_model=3)).n_active.tolist() == [1, 1, 1, 1, 0, 0]


def test_the_same_arguments_give_the_same_bits_and_resumed_equals_never_stopped() -> None:
    config = make_config(aux_coefficient=AUX)
    (_, one), (_, other), (_, resumed) = (steps_of(config, n_core=5) for _ in range(3))
    is_dead = dead_of(40, 34)
    for step in (one, other):
        take(step, batch(3), is_dead=is_dead)
    resumed.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in (one, other, resumed):
        take(step, batch(3, seed=1), is_dead=is_dead)
    assert_same_bits(one.sae(), other.sae())
    assert_same_bits(one.sae(), resumed.sae())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_loss_and_moves_no_weight(lost: float) -> None:
    _, gpu = steps_of(make_config(), n_core=5)
    before, x = gpu.sae(), batch(3)
    x[1, 2] = lost
    gpu.select(x)
    losses = gpu.losses(is_dead=dead_of(40, 40))
    assert not losses.prefixes.isfinite().any()
    assert not gpu.update(losses.prefixes.sum(), lr=1e-3).isfinite()
    assert_same_bits(gpu.sae(), before)


@pytest.mark.parametrize("is_unit", [True, False])
@pytest.mark.parametrize("shape", [(1, 2500), (5, 300)])
def test_adam_is_torchs_and_reads_no_gradient_that_is_not_there(
    shape: tuple[int, int], is_unit: bool
) -> None:
    from dmsae.gpu_step import step_rows

    rows, slopes = (random_x(shape[0], d_model=shape[1], seed=seed).to(DEVICE) for seed in range(2))
    if len(rows) > 1:
        slopes[3] = 0
    twin = rows.clone().requires_grad_()
    optimizer = torch.optim.Adam([twin], lr=1e-3)
    state, squares = (torch.zeros_like(rows), torch.zeros_like(rows)), slopes.square().sum(dim=1)
    for number in range(2):
        rates = adam_rates(1e-3, (0.9, 0.999), number + 1, scale=0.5, epsilon=1e-8)
        unread = slopes.masked_fill((squares == 0)[:, None], torch.nan)
        step_rows(rows, Gradient(unread, squares), state, rates=rates, is_unit=is_unit)
        twin.grad = 0.5 * slopes
        optimizer.step()
        if is_unit:
            with torch.no_grad():
                twin /= twin.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows, twin.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(IS_INTERPRETED, reason="takes minutes in Triton's interpreter")
@pytest.mark.parametrize("shape", [(256, 4096, 16, 256), (576, 8192, 32, 1024), (2304, 16384, 64, 512)])
@all_sparsities
def test_a_step_of_training_size_equals_the_plain_one(
    shape: tuple[int, ...], sparsity: dict[str, str]
) -> None:
    d_model, n_latents, k, n_tokens = shape
    sae = {"n_latents": n_latents, "k": k, "block_widths": [128, 1024], **sparsity}
    config = make_config(sae=sae, batch_tokens=n_tokens, aux_coefficient=AUX)
    plain, gpu = steps_of(config, n_core=60, d_model=d_model)
    is_dead = dead_of(n_latents, n_latents - 100)
    assert assert_same_step(plain, gpu, batch(n_tokens, d_model=d_model), is_dead=is_dead, is_mean=False)


@pytest.mark.skipif(IS_INTERPRETED, reason="asks for a GPU")
def test_the_setting_chooses_the_step_on_a_gpu() -> None:
    from dmsae.gpu_step import GpuStep

    for way, kind in (("fast", GpuStep), ("plain", PlainStep)):
        config = make_config(step=way)
        assert type(make_step(start_of(config, 0, 12), config, device=DEVICE)) is kind


@pytest.mark.skipif(IS_INTERPRETED, reason="this build of torch demands no Triton")
def test_the_kernels_are_tried_out_with_the_triton_that_torch_demands() -> None:
    demanded = importlib.metadata.requires("torch") or []
    assert any(requirement.startswith(TRITON) for requirement in demanded)

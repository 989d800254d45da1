"""Claims about the sparse step: it is the plain step over dense matrices, but for float32 rounding."""

import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.errors import CycleFailed
from dmsae.estimates import has_fast_int8
from dmsae.losses import total_loss
from dmsae.plain_step import PlainStep
from dmsae.sae import MatryoshkaSae, init_sae
from dmsae.sparse_step import SparseStep
from dmsae.steps import Selected, Step
from dmsae.training import CPU, make_step
from tests.trained import SPARSITIES, make_config, random_x, tensors_of
from tests.unit.test_sae import make_core

ROUNDING = 1e-5
"""Two float32 sums of a few thousand terms in different orders differ by less, relative to the largest."""
AUX = 0.5


@st.composite
def configs(draw: st.DrawFn) -> tuple[DistillationConfig, int, int]:
    """A config, a core's size and d_model: also prefixes of one latent, cores wider than the first block."""
    d_model, n_core = draw(st.integers(2, 20)), draw(st.integers(0, 12))
    widths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=5, unique=True))
    n_latents = n_core + max(widths) + draw(st.integers(2, 20))
    sae = {
        **draw(st.sampled_from(SPARSITIES)),
        "n_latents": n_latents,
        "block_widths": sorted(widths),
        "k": draw(st.integers(1, n_latents)),
        "prefix_loss": draw(st.sampled_from(["sum", "mean"])),
    }
    training = {"grad_clip_norm": draw(st.sampled_from([1e-2, 1e3])), "aux_coefficient": AUX}
    return make_config(sae=sae, batch_tokens=draw(st.integers(1, 24)), **training), n_core, d_model


def start_of(config: DistillationConfig, n_core: int, d_model: int) -> MatryoshkaSae:
    core = make_core(d_model, n_core) if n_core else None
    generator = torch.Generator().manual_seed(0)
    first_batch = random_x(8, d_model=d_model, seed=99)
    start = init_sae(config.sae, d_model, core=core, first_batch=first_batch, generator=generator)
    # where the encoder is the decoder's transpose, gradients of a lone active latent cancel to rounding
    start.W_enc[:, n_core:] += 0.5 * torch.randn(d_model, config.sae.n_latents - n_core, generator=generator)
    return start


def close(one: Tensor, other: Tensor, name: str, *, tolerance: float = ROUNDING, scale: float = 0.0) -> None:
    """Compare relative to the largest entry, or to `scale` where sums of that size may cancel."""
    scale = max(scale, one.detach().abs().max().item() if one.numel() else 0.0)
    torch.testing.assert_close(
        other, one.detach(), rtol=0, atol=tolerance * scale + 1e-12, msg=lambda text: f"{name}: {text}"
    )


def is_near_tie(plain: PlainStep, selected: Selected) -> bool:
    """Tell whether two values around the border are equal but for rounding, so that either may be kept."""
    n_exempt = plain._sparsity.n_exempt
    acts, pre_acts = plain._latent_acts.detach()[:, n_exempt:], plain._pre_acts.detach()[:, n_exempt:]
    if not (acts > 0).any() or int((acts > 0).sum()) >= int((pre_acts > 0).sum()):
        return False
    left_out = pre_acts[(acts == 0) & (pre_acts > 0)].max()
    return bool(left_out > acts[acts > 0].min() * (1 - 1e-5)) or selected.budget < 1


def assert_same_step(
    plain: PlainStep,
    sparse: SparseStep,
    x: Tensor,
    *,
    is_dead: Tensor,
    is_mean: bool,
    tolerance: float = ROUNDING,
) -> bool:
    """Take one step of each and compare everything; False where a near-tie forbids it."""
    selected, other = plain.select(x), sparse.select(x)
    if is_near_tie(plain, selected):
        return False
    assert selected.budget == other.budget
    assert torch.equal(selected.n_active, other.n_active)
    losses, other_losses = plain.losses(is_dead=is_dead), sparse.losses(is_dead=is_dead)
    close(losses.prefixes, other_losses.prefixes, "prefix losses", tolerance=tolerance)
    close(losses.dead, other_losses.dead, "dead latents' loss", tolerance=tolerance)
    total, other_total = (
        total_loss(part, aux_coefficient=AUX, is_mean=is_mean) for part in (losses, other_losses)
    )
    # before what lies along decoder rows is taken away: what is left may be small, its rounding is not
    whole = torch.autograd.grad(total, list(plain.parameters.values()), retain_graph=True)
    largest = {name: slope.abs().max().item() for name, slope in zip(plain.parameters, whole, strict=True)}
    norm, other_norm = plain.update(total, lr=1e-3), sparse.update(other_total, lr=1e-3)
    close(norm, other_norm, "norm", tolerance=tolerance)
    clipped = min(1.0, plain._clip_norm / (norm.item() + 1e-6))
    for name, gradient in plain.gradients().items():
        other_gradient = clipped * sparse.gradients()[name]
        if name == "W_enc":
            other_gradient = other_gradient.T
        scale = clipped * max(largest[name], 0.01 * max(largest.values()))
        close(gradient, other_gradient, f"{name}.grad", tolerance=tolerance, scale=scale)
    return True


def copy_weights(plain: PlainStep, sparse: SparseStep) -> None:
    """Go on from the same weights: what Adam makes of rounding is no claim about gradients."""
    for name, parameter in sparse.parameters.items():
        given = plain.parameters[name].detach()
        parameter.copy_(given.T if name == "W_enc" else given)


@settings(deadline=None, max_examples=60)
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
    plain, sparse = PlainStep(start_of(*drawn), config), SparseStep(start_of(*drawn), config)
    with torch.no_grad():
        plain.parameters["b_enc"].add_(shift)  # none or all of them positive, too
    sparse.parameters["b_enc"].add_(shift)
    n_exempt = n_core if config.sae.core_sparsity == "exempt" else 0
    for step in range(2):
        x = random_x(config.training.batch_tokens, d_model=d_model, seed=seed + step)
        is_dead = torch.rand(config.sae.n_latents, generator=torch.Generator().manual_seed(seed)) < share_dead
        is_dead[:n_exempt] = False
        is_mean = config.sae.prefix_loss == "mean"
        # a shift of 50 makes pre-activations, and their rounding, that much larger than what they differ by
        tolerance = ROUNDING * (1 + abs(shift))
        if not assert_same_step(plain, sparse, x, is_dead=is_dead, is_mean=is_mean, tolerance=tolerance):
            return
        copy_weights(plain, sparse)


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda sparsity: "-".join(sparsity.values()))
def test_weights_stay_together_over_many_steps(sparsity: dict[str, str]) -> None:
    config = make_config(sae=sparsity, aux_coefficient=AUX, grad_clip_norm=0.3)
    plain, sparse = (way(start_of(config, 5, 12), config) for way in (PlainStep, SparseStep))
    is_dead = torch.arange(40) >= 35
    for step in range(20):
        x = random_x(32, seed=step)
        for way in (plain, sparse):
            way.select(x)
            losses = way.losses(is_dead=is_dead)
            way.update(total_loss(losses, aux_coefficient=AUX, is_mean=False), lr=1e-3)
    one, other = tensors_of(plain.sae()), tensors_of(sparse.sae())
    assert torch.equal(one["W_enc"][:, :5], other["W_enc"][:, :5])
    # Adam divides by gradients near 0, where rounding is all there is: a few thousandths of 20 steps of 1e-3
    for name, tensor in one.items():
        close(tensor, other[name], name, tolerance=1e-4)


def test_equal_activations_at_the_border_are_kept_by_lower_token_then_latent() -> None:
    config = make_config(sae={"k": 1, "n_latents": 6, "block_widths": [2]}, batch_tokens=4)
    plain, sparse = (way(start_of(config, 0, 3), config) for way in (PlainStep, SparseStep))
    for way in (plain, sparse):
        with torch.no_grad():
            way.parameters["W_enc"].zero_()
            way.parameters["b_enc"].fill_(0.25)
    x = random_x(4, d_model=3)
    for way in (plain, sparse):
        assert way.select(x).n_active.tolist() == [1, 1, 1, 1, 0, 0]


def test_threads_and_what_the_screen_remembers_decide_no_bit() -> None:
    config, n_threads = make_config(), torch.get_num_threads()
    states = []
    for n in (1, 3):
        torch.set_num_threads(n)
        step = SparseStep(start_of(config, 5, 12), config)
        for number in range(5):
            if n == 3:
                step._screen._border = step._screen._border * 0 + 10.0 ** (number - 2)
            step.select(random_x(32, seed=number))
            step.update(step.losses(is_dead=torch.arange(40) >= 30).prefixes.sum(), lr=1e-2)
        states.append(tensors_of(step.sae()))
    torch.set_num_threads(n_threads)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_step_of_training_size_screens_by_int8_and_equals_the_plain_one() -> None:
    d_model, n_latents, n_tokens = 256, 4096, 256
    if not has_fast_int8(d_model):
        pytest.skip("this processor has no instructions for products of int8")
    config = make_config(
        sae={"n_latents": n_latents, "k": 16, "block_widths": [128, 1024]},
        batch_tokens=n_tokens,
        aux_coefficient=AUX,
    )
    plain, sparse = (way(start_of(config, 60, d_model), config) for way in (PlainStep, SparseStep))
    assert sparse._screen._estimator._is_int8
    x = random_x(n_tokens, d_model=d_model)
    assert assert_same_step(plain, sparse, x, is_dead=torch.arange(n_latents) >= 4000, is_mean=False)


def test_the_setting_chooses_the_step_on_a_cpu() -> None:
    def chosen(way: str) -> type[Step]:
        config = make_config(step=way)
        return type(make_step(start_of(config, 0, 12), config, device=CPU))

    assert chosen("auto") is SparseStep
    assert chosen("fast") is SparseStep
    assert chosen("plain") is PlainStep


@pytest.mark.parametrize("missing", ["Triton", "a C compiler", "the headers of Python"])
def test_a_gpu_without_what_its_fast_step_needs_is_refused_and_takes_no_other_step(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    include = tmp_path if missing == "the headers of Python" else sysconfig.get_path("include")
    (compiler, triton) = (None if missing == part else "there" for part in ("a C compiler", "Triton"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: triton)
    monkeypatch.setattr("shutil.which", lambda _name: compiler)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(include))
    config = make_config(step="fast")
    with pytest.raises(CycleFailed, match=f"needs {missing}") as refused:
        make_step(start_of(config, 0, 12), config, device=torch.device("cuda"))
    assert (refused.value.failure, refused.value.param) == ("device_unavailable", "training.step")

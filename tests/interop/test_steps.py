"""One training step of ours and of the peers' on the same weights and batch: the same losses and gradients.

The factors between the conventions, with G prefixes, L the sum of the prefixes' losses, r the residual of the
widest prefix and alpha our `aux_coefficient`:

| | what is minimised | times this it is ours |
| --- | --- | --- |
| ours | L + alpha missed / V, `prefix_loss: mean` divides all of it by G | |
| SAELens | L + c s missed | 1, where c = alpha / (V s) |
| dictionary_learning | L / G^2 + alpha' missed / V | G^2 (G for `mean`), where alpha' = alpha / G^2 |

missed = mean_t ||r - r_hat||^2, V = mean_t ||r - r_bar||^2, s = min(1, n_dead / (D // 2)).

- dictionary_learning takes a *mean* over prefixes that each have the weight 1/G already.
- It puts ReLU over the dead latents' pre-activations, SAELens and we do not: a dead latent that is negative
  everywhere gets no gradient there.
- SAELens leaves the decoder gradient's component along the rows, dictionary_learning removes it as we do.
- Both train the core's encoder vectors, too: they know of no core.
- In SAELens `rescale_acts_by_decoder_norm` is off: it would put the norms of rows into the gradient.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.losses import total_loss, variance
from dmsae.plain_step import PlainStep
from dmsae.sae import MatryoshkaSae, normalise_rows_
from dmsae.sparse_step import SparseStep
from dmsae.sparsity import Sparsity
from tests.trained import make_config, random_x

D_MODEL, N_LATENTS, N_TOKENS, K = 16, 64, 48, 4
PREFIX_WIDTHS = [16, 24, 40, N_LATENTS]
G = len(PREFIX_WIDTHS)
ALPHA = 1 / 4
TOLERANCE = 1e-5
"""Of the largest entry: float32 sums in different orders."""


class Dead(NamedTuple):
    """Which latents are dead: the last `n`, with pre-activations around `bias`."""

    n: int
    bias: float


CASES = {
    "no dead latent": Dead(0, 0.0),
    "few dead latents": Dead(3, 0.15),
    "many dead latents": Dead(20, 0.15),
    "many dead latents that are negative everywhere": Dead(20, -0.15),
}
CORES = {"no core": 0, "a core of 6": 6}
STEPS = {"plain": PlainStep, "sparse": SparseStep}


class Case(NamedTuple):
    """Weights and a batch, and the folder in which a peer finds them and leaves what it makes of them."""

    folder: Path
    start: MatryoshkaSae
    x: Tensor
    is_dead: Tensor

    def losses(self, peer: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{peer}.json").read_text())
        return found

    def gradients(self, peer: str) -> dict[str, Tensor]:
        """Give a peer's gradients of what we train: without the core's encoder vectors."""
        gradients = load_file(self.folder / f"{peer}.safetensors")
        return {**gradients, "W_enc": gradients["W_enc"][:, self.start.n_core :]}


class Ours(NamedTuple):
    """What one of our steps finds, the gradients unclipped and by columns of `W_enc`."""

    prefixes: Tensor
    total: float
    gradients: dict[str, Tensor]


def start_of(dead: Dead, n_core: int) -> MatryoshkaSae:
    """Draw weights under which dead latents are never selected; the first `n_core` latents are frozen."""
    generator = torch.Generator().manual_seed(3)
    W_dec = normalise_rows_(torch.randn(N_LATENTS, D_MODEL, generator=generator))
    W_enc = W_dec.T + 0.2 * torch.randn(D_MODEL, N_LATENTS, generator=generator)
    b_enc = 0.05 * torch.randn(N_LATENTS, generator=generator)
    if dead.n:
        W_enc[:, -dead.n :] *= 0.1
        b_enc[-dead.n :] = dead.bias
    return MatryoshkaSae(
        W_enc=W_enc.contiguous(),
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=0.1 * torch.randn(D_MODEL, generator=generator),
        threshold=torch.zeros(N_LATENTS),
        prefix_widths=PREFIX_WIDTHS,
        n_core=n_core,
    )


def config_of(n_core: int, *, prefix_loss: str = "sum") -> DistillationConfig:
    widths = [width - n_core for width in PREFIX_WIDTHS[:-1]]
    sae = {"n_latents": N_LATENTS, "k": K, "block_widths": widths, "prefix_loss": prefix_loss}
    return make_config(sae=sae, batch_tokens=N_TOKENS, grad_clip_norm=1e6, aux_coefficient=ALPHA)


def take_step(case: Case, step: str, *, prefix_loss: str = "sum") -> Ours:
    """Take one of our steps on a copy of the weights."""
    config = config_of(case.start.n_core, prefix_loss=prefix_loss)
    copy = replace(case.start, **{name: tensor.clone() for name, tensor in weights_of(case.start).items()})
    way = STEPS[step](copy, config)
    way.select(case.x)
    losses = way.losses(is_dead=case.is_dead)
    total = total_loss(losses, aux_coefficient=ALPHA, is_mean=prefix_loss == "mean")
    way.update(total, lr=1e-3)
    gradients = {name: gradient.clone() for name, gradient in way.gradients().items()}
    if step == "sparse":
        gradients["W_enc"] = gradients["W_enc"].T
    return Ours(losses.prefixes.detach(), total.item(), gradients)


def weights_of(sae: MatryoshkaSae) -> dict[str, Tensor]:
    return {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def write_case(folder: Path, dead: Dead, n_core: int) -> Case:
    """Write what the peers read, with the coefficients under which their loss is ours but for a factor."""
    start, x = start_of(dead, n_core), random_x(N_TOKENS, d_model=D_MODEL)
    is_dead = torch.arange(N_LATENTS) >= N_LATENTS - dead.n
    acts = Sparsity.of(config_of(n_core).sae, n_core=n_core).sparsify(start.pre_acts(x)).latent_acts
    assert not (acts[:, is_dead] > 0).any()
    assert (acts > 0).sum() == K * N_TOKENS
    spread = variance(x - start.decode(acts)).item()
    few = min(1.0, max(1, dead.n) / (D_MODEL // 2))
    settings = {
        "k": K,
        "prefix_widths": PREFIX_WIDTHS,
        "aux_coefficient": {"sae_lens": ALPHA / (spread * few), "dictionary_learning": ALPHA / G**2},
    }
    (folder / "step.json").write_text(json.dumps(settings))
    save_file({**weights_of(start), "x": x, "is_dead": is_dead}, folder / "start.safetensors")
    return Case(folder, start, x, is_dead)


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, run_peer: Callable[[str, list[Path]], None]
) -> dict[tuple[str, str], Case]:
    """Every case, with the step that each peer takes."""
    cases = {
        (dead, core): write_case(tmp_path_factory.mktemp("step"), CASES[dead], CORES[core])
        for dead in CASES
        for core in CORES
    }
    folders = [case.folder for case in cases.values()]
    run_peer("step_with_sae_lens.py", folders)
    run_peer("step_with_dictionary_learning.py", folders)
    return cases


def assert_close(ours: Tensor, theirs: Tensor, name: str) -> None:
    scale = ours.abs().max().item()
    torch.testing.assert_close(
        theirs, ours, rtol=0, atol=TOLERANCE * scale, msg=lambda text: f"{name}: {text}"
    )


def without_radial(gradient: Tensor, W_dec: Tensor) -> Tensor:
    return gradient - (gradient * W_dec).sum(dim=1, keepdim=True) * W_dec


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dead", CASES)
def test_losses_and_gradients_are_those_of_saelens(
    cases: dict[tuple[str, str], Case], dead: str, core: str, step: str
) -> None:
    case = cases[dead, core]
    ours, theirs = take_step(case, step), case.losses("sae_lens")
    inner = [theirs["losses"][f"inner_mse_loss_{width}"] for width in PREFIX_WIDTHS[:-1]]
    assert ours.prefixes.tolist() == pytest.approx([*inner, theirs["losses"]["mse_loss"]], rel=TOLERANCE)
    assert ours.total == pytest.approx(theirs["loss"], rel=TOLERANCE)
    gradients = case.gradients("sae_lens")
    gradients["W_dec"] = without_radial(gradients["W_dec"], case.start.W_dec)
    assert ours.gradients.keys() == gradients.keys()
    for name, gradient in ours.gradients.items():
        assert_close(gradient, gradients[name], name)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("prefix_loss", "factor"), [("sum", G**2), ("mean", G)])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dead", [name for name, dead in CASES.items() if dead.bias >= 0])
def test_loss_and_gradients_are_those_of_dictionary_learning_but_for_a_factor(
    cases: dict[tuple[str, str], Case], dead: str, core: str, prefix_loss: str, factor: int, step: str
) -> None:
    case = cases[dead, core]
    ours, theirs = take_step(case, step, prefix_loss=prefix_loss), case.losses("dictionary_learning")
    assert theirs["n_dead"] == CASES[dead].n
    assert ours.total == pytest.approx(factor * theirs["loss"], rel=TOLERANCE)
    gradients = case.gradients("dictionary_learning")
    assert ours.gradients.keys() == gradients.keys()
    for name, gradient in ours.gradients.items():
        assert_close(gradient, factor * gradients[name], name)


@pytest.mark.parametrize("core", CORES)
def test_dead_latents_that_are_negative_everywhere_learn_here_but_not_in_dictionary_learning(
    cases: dict[tuple[str, str], Case], core: str
) -> None:
    case = cases["many dead latents that are negative everywhere", core]
    theirs = case.gradients("dictionary_learning")
    assert case.losses("dictionary_learning")["n_dead"] == int(case.is_dead.sum())
    assert not theirs["b_enc"][case.is_dead].any()
    ours = take_step(case, "plain").gradients
    assert ours["b_enc"][case.is_dead].all()


def test_a_wrong_factor_would_be_noticed(cases: dict[tuple[str, str], Case]) -> None:
    case = cases["many dead latents", "a core of 6"]
    ours, theirs = take_step(case, "plain"), case.gradients("dictionary_learning")
    dead_part = ours.gradients["b_enc"][case.is_dead].abs().max() / ours.gradients["b_enc"].abs().max()
    assert dead_part > 100 * TOLERANCE
    with pytest.raises(AssertionError, match="W_dec"):
        assert_close(ours.gradients["W_dec"], G * theirs["W_dec"], "W_dec")

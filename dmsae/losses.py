"""What does training minimise: the prefixes' reconstruction errors and the dead latents' part (METHOD 5)?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Losses(NamedTuple):
    """The parts of the loss, apart."""

    prefixes: Float[Tensor, " n_prefixes"]
    """Of each prefix: squared error summed over d_model, mean over tokens."""
    dead: Float[Tensor, ""]
    """Share of the residual's variance that dead latents leave unexplained, before its weight."""


def reconstruction_losses(
    x: Float[Tensor, "batch d_model"], x_hats: list[Float[Tensor, "batch d_model"]]
) -> Float[Tensor, " n_prefixes"]:
    """Give the squared error of each reconstruction, summed over d_model, mean over tokens."""
    return torch.stack([(x - x_hat).square().sum(dim=1).mean() for x_hat in x_hats])


def variance(x: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
    """Give the mean squared distance to the mean over tokens, summed over d_model."""
    return (x - x.mean(dim=0)).square().sum(dim=1).mean()


def dead_latent_loss(
    residual: Float[Tensor, "batch d_model"],
    pre_acts: Float[Tensor, "batch n_latents"],
    W_dec: Float[Tensor, "n_latents d_model"],
    *,
    is_dead: Bool[Tensor, " n_latents"],
    scale: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Give the share of the residual's variance that the dead latents leave unexplained.

    `scale` is that variance where `residual` is only a part of what it is taken over.

    The top min(d_model/2, n_dead) dead latents of each token, by pre-activation before ReLU, reconstruct the
    detached residual without bias. 0 where none is dead or the residual does not vary (as where it is 0).

    Source: AuxK, arXiv 2406.04093; the pre-activation in place of its ReLU is our choice (METHOD 5): a latent
    that is negative everywhere would else never get a gradient.
    """
    residual = residual.detach()
    scale = variance(residual) if scale is None else scale
    dead = is_dead.nonzero().squeeze(1)
    if len(dead) == 0 or scale == 0:
        return residual.new_zeros(())
    acts = pre_acts.index_select(1, dead)
    n_used = n_dead_used(len(dead), d_model=residual.shape[1])
    if n_used < len(dead):
        used = acts.detach().topk(n_used, dim=1, sorted=False).indices
        acts = acts * torch.zeros_like(acts).scatter_(1, used, 1.0)
    missed = residual - acts @ W_dec.index_select(0, dead)
    return missed.square().sum(dim=1).mean() / scale


def n_dead_used(n_dead: int, *, d_model: int) -> int:
    """Give how many of the dead latents reconstruct the residual of a token."""
    return min(max(1, d_model // 2), n_dead)


def total_loss(losses: Losses, *, aux_coefficient: float, is_mean: bool) -> Float[Tensor, ""]:
    """Add up what is minimised; `is_mean` divides the whole of it by the number of prefixes."""
    total = losses.prefixes.sum() + aux_coefficient * losses.dead
    return total / len(losses.prefixes) if is_mean else total

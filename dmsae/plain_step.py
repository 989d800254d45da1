"""One training step over dense matrices, by autograd: slow, plain, and what `sparse_step.py` is held to."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import CycleConfig
from dmsae.losses import Losses, dead_latent_loss, reconstruction_losses
from dmsae.sae import MatryoshkaSae, decode_prefixes, normalise_rows_
from dmsae.sparsity import Sparsity
from dmsae.steps import ADAM_BETAS, Selected


def remove_radial_gradient_(W_dec: Float[Tensor, "n_latents d_model"]) -> None:
    """Remove the gradient's component along each decoder row; rows have unit norm.

    Mutates: `W_dec.grad`.
    """
    if W_dec.grad is not None:
        rows = W_dec.detach()
        along = (W_dec.grad * rows).sum(dim=1, keepdim=True)
        W_dec.grad.addcmul_(along, rows, value=-1)


class PlainStep:
    """Trains on any device (`steps.Step`): same arguments and thread count, same bits."""

    def __init__(self, start: MatryoshkaSae, config: CycleConfig) -> None:
        self._n_core, self._prefix_widths = start.n_core, list(start.prefix_widths)
        self._sparsity = Sparsity.of(config.sae, n_core=start.n_core)
        self._clip_norm = config.training.grad_clip_norm
        # the core's encoder vectors are no parameter: no gradient, no share of the clip norm, no drift
        self._core_W_enc = start.W_enc[:, : start.n_core].contiguous()
        self._parameters = {
            "W_enc": start.W_enc[:, start.n_core :].contiguous().requires_grad_(),
            "b_enc": start.b_enc.requires_grad_(),
            "W_dec": start.W_dec.requires_grad_(),
            "b_dec": start.b_dec.requires_grad_(),
        }
        self._optimizer = torch.optim.Adam(
            self._parameters.values(), lr=config.training.lr, betas=ADAM_BETAS, fused=True
        )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Give what is trained: `W_enc` without the core's vectors, which stay as they are."""
        return self._parameters

    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active."""
        self._x, self._pre_acts = x, self._encode(x)
        self._latent_acts, budget = self._sparsity.sparsify(self._pre_acts)
        return Selected((self._latent_acts > 0).sum(dim=0), budget)

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected."""
        _, _, W_dec, b_dec = self._parameters.values()
        x_hats = decode_prefixes(self._latent_acts, W_dec, b_dec, prefix_widths=self._prefix_widths)
        dead = dead_latent_loss(self._x - x_hats[-1], self._pre_acts, W_dec, is_dead=is_dead)
        return Losses(reconstruction_losses(self._x, x_hats), dead)

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam down the gradient of `loss`, and bring decoder rows back to unit norm."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return self._step_down(lr=lr)

    def _encode(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_latents"]:
        W_enc, b_enc, _, b_dec = self._parameters.values()
        centred = x - b_dec
        return torch.cat([centred @ self._core_W_enc, centred @ W_enc], dim=1) + b_enc

    def _step_down(self, *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam down the gradients at hand; give their norm before clipping."""
        self._optimizer.param_groups[0]["lr"] = lr
        remove_radial_gradient_(self._parameters["W_dec"])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_norm)
        if norm.isfinite():
            self._optimizer.step()
            with torch.no_grad():
                normalise_rows_(self._parameters["W_dec"])
        return norm

    def gradients(self) -> dict[str, Tensor]:
        """Give the gradients of the last update, clipped."""
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def sae(self) -> MatryoshkaSae:
        """Copy the SAE as it stands, without a threshold (all 0)."""
        W_enc, b_enc, W_dec, b_dec = (parameter.detach().clone() for parameter in self._parameters.values())
        return MatryoshkaSae(
            W_enc=torch.cat([self._core_W_enc, W_enc], dim=1),
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=b_dec,
            threshold=torch.zeros_like(b_enc),
            prefix_widths=list(self._prefix_widths),
            n_core=self._n_core,
        )

    def state_dict(self) -> dict[str, Any]:
        """Give parameters and optimiser, not copied."""
        parameters = {name: parameter.detach() for name, parameter in self._parameters.items()}
        return {"parameters": parameters, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, copied, what `state_dict` gave."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])

"""What must a training step do, whichever way it computes (`plain_step.py`, `sparse_step.py`)?"""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dmsae.losses import Losses
from dmsae.sae import MatryoshkaSae

ADAM_BETAS = (0.9, 0.999)
"""METHOD 6."""


class Selected(NamedTuple):
    """What one batch keeps active."""

    n_active: Int[Tensor, " n_latents"]
    """On how many tokens each latent is active."""
    budget: int
    """How many activations of the whole batch the latents that compete might keep."""


class Step(Protocol):
    """One SAE in training and its optimiser; a batch takes `select`, `losses` and `update`, in this order."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Give what is trained, by name; their layout is the step's own."""

    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active."""

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected; not finite where anything they depend on is not."""

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take an optimiser step on `loss`, the total of `losses`; give the gradient's norm before clipping.

        Where that is not finite, no weight moves.
        """

    def gradients(self) -> dict[str, Tensor]:
        """Give the gradients of the last update, after removal of the radial part."""

    def sae(self) -> MatryoshkaSae:
        """Copy the SAE as it stands, without a threshold (all 0)."""

    def state_dict(self) -> dict[str, Any]:
        """Give parameters and optimiser, not copied."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, copied, what `state_dict` gave."""

"""In which type are activations kept for training, and what does that cost?

float16 beside one power of two for each token: eleven bits of every number, whatever the size of a model's
activations, in the bytes of bfloat16, which keeps eight. All that trains sees activations so rounded,
wherever they come from, so that it is all the same whether they were kept or not.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Int, Int8
from torch import Tensor

LARGEST_EXPONENT = 15
"""A token's largest number lies in [2^14, 2^15]: below float16's limit, and far above its gap at zero."""

SMALLEST_NORMAL = -126
"""Exponent of float32's smallest normal number; a token of smaller ones keeps what float16 holds of them."""


class Halves(NamedTuple):
    """Rounded activations: `halves` times 2 to the power of `exponents`, in raw units."""

    halves: Float16[Tensor, "n d_model"]
    exponents: Int8[Tensor, " n"]

    def float(self) -> Float[Tensor, "n d_model"]:
        """Give them as float32; nothing is lost on the way."""
        return self.halves.float() * _powers_of_two(self.exponents.int())[:, None]

    def take(self, places: Int[Tensor, " m"]) -> Float[Tensor, "m d_model"]:
        """Give some of them as float32."""
        return Halves(self.halves[places], self.exponents[places]).float()

    @property
    def n_bytes(self) -> int:
        """Memory that they take."""
        return self.halves.nbytes + self.exponents.nbytes


class RoundingError(NamedTuple):
    """Sums over tokens from which the relative error of rounding is told."""

    difference: float = 0.0
    """Squared length of what was lost."""
    size: float = 0.0
    """Squared length of what was rounded."""

    def __add__(self, other: object) -> "RoundingError":
        """Add both sums."""
        if not isinstance(other, RoundingError):
            return NotImplemented
        return RoundingError(self.difference + other.difference, self.size + other.size)

    @property
    def relative(self) -> float:
        """Root of the mean squared error over that of the activations themselves."""
        return math.sqrt(self.difference / self.size) if self.size > 0 else 0.0


def bytes_per_token(d_model: int) -> int:
    """Give the bytes of one rounded activation with its norm."""
    return 2 * d_model + 1 + 4


def round_to_half(x: Float[Tensor, "n d_model"]) -> Halves:
    """Round activations, each token at a scale of its own.

    Shapes: float32 in raw units, finite; the answer is on the same device.
    """
    _, exponents = torch.frexp(x.abs().amax(dim=-1))
    exponents = (exponents - LARGEST_EXPONENT).clamp(min=SMALLEST_NORMAL)
    return Halves((x * _powers_of_two(-exponents)[:, None]).half(), exponents.to(torch.int8))


def rounding_error(x: Float[Tensor, "n d_model"], rounded: Float[Tensor, "n d_model"]) -> RoundingError:
    """Measure what rounding lost."""
    return RoundingError((x - rounded).square().sum().item(), x.square().sum().item())


def _powers_of_two(exponents: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Give 2 to the power of each, exactly: the exponent's bits of a float32, from -126 to 127."""
    return ((exponents + 127) << 23).to(torch.int32).view(torch.float32)

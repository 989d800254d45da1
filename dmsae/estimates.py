"""How large may each pre-activation of a batch be at most, found by one fast product instead of an exact one?

Both factors are rounded to int8 where the machine is fast at that, else they stay float32. How far xq . wq
may be from x . w is |x - xq| |w| + |xq| |w - wq| (Cauchy-Schwarz), with all norms measured, then widened for
everything that float32 rounds along the way (`_widened`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dmsae import sparse_kernels
from dmsae.row_workers import RowWorkers, Workspace

Floats = NDArray[np.float32]

MOST_ESTIMATES = 2**21
"""Estimates held at once, of 4 bytes each: few enough to stay in a processor's last cache."""
INT8_WIDTHS = range(2, 2**16)
"""Sums of so many products of int8 are exact in int32; of single ones torch 2.13 gives other numbers."""
N_SAMPLED = 512
"""Rows from which the size of each column is taken."""
UNIT = 2.0**-24
"""Most that rounding to float32 changes a number, as a share of it."""
LEAST_NORM = 2e-19
"""Squares below float32's normal numbers may be lost: so much may be missing of each entry of a norm."""
LEAST_VALUE = 1e-30
"""Above all that products can lose to float32's least numbers."""


class Measured(NamedTuple):
    """What stands for some rows in the product, and what is lost by that."""

    scales: Floats
    """A row is about what stands for it times its scale."""
    norms: Floats
    error_norms: Floats

    def is_finite(self) -> bool:
        """Tell whether all of it is."""
        return all(bool(np.isfinite(array).all()) for array in self)


class Estimates(NamedTuple):
    """Of a batch, for every token and latent.

    exact <= bias + scale * row_scale * estimate + error * row_norm + norm * row_error.
    """

    product: Callable[[int, int], NDArray[Any]]
    """Gives the estimates of all tokens by latents `start` to `stop`, valid until called again."""
    of_tokens: Measured
    of_rows: Measured
    bias: Floats

    def is_finite(self) -> bool:
        """Tell whether the bounds bound anything."""
        return self.of_tokens.is_finite() and self.of_rows.is_finite() and bool(np.isfinite(self.bias).all())

    def bounds(self) -> Floats:
        """Give, by token, what `sparse_kernels.find_above` compares with; the rows' errors at their worst."""
        scales, norms, errors = self.of_tokens
        worst = (self.of_rows.error_norms / self.of_rows.scales).max()
        return np.stack([1 / scales, errors / scales, norms * worst / scales], axis=1)

    def needed(self, floor: np.float32, latents: slice) -> tuple[Floats, Floats]:
        """Give the other part, by latent: what reaches `floor`, and the norm, both over the row's scale."""
        scales = self.of_rows.scales[latents]
        return (floor - self.bias[latents]) / scales, self.of_rows.norms[latents] / scales


class Estimator:
    """Makes estimates, in memory that is made once: they are valid until the next ones."""

    def __init__(self, workers: RowWorkers, *, is_int8: bool) -> None:
        self._workers, self._workspace, self._is_int8 = workers, Workspace(), is_int8

    def estimate(
        self,
        x: Float[Tensor, "batch d_model"],
        rows: Float[Tensor, "n_latents d_model"],
        bias: Float[Tensor, " n_latents"],
    ) -> Estimates:
        """Estimate x . row + bias."""
        scales = _column_scales(x, rows)
        if self._is_int8:
            left, of_tokens = self._quantise("x", x, scales)
            right, of_rows = self._quantise("rows", rows, np.float32(1) / scales)
        else:
            (left, of_tokens), (right, of_rows) = _as_it_is(x), _as_it_is(rows)
        n_most = len(x) * n_together(len(x), len(rows))
        buffer = self._workspace.take("estimates", (n_most,), np.int32 if self._is_int8 else np.float32)
        multiply = torch._int_mm if self._is_int8 else torch.mm

        def product(start: int, stop: int) -> NDArray[Any]:
            out = buffer[: len(x) * (stop - start)].reshape(len(x), stop - start)
            multiply(left, right[start:stop].T, out=torch.from_numpy(out))
            return out

        with np.errstate(over="ignore", invalid="ignore"):  # whoever asks is told by `is_finite`
            return _widened(Estimates(product, of_tokens, of_rows, bias.numpy()), d_model=x.shape[1])

    def _quantise(self, name: str, rows: Tensor, column_scales: NDArray[Any]) -> tuple[Tensor, Measured]:
        array, take = rows.numpy(), self._workspace.take
        int8_rows = take(f"{name}.int8", array.shape, np.int8)
        measured = Measured(*(take(f"{name}.{part}", (len(array),)) for part in Measured._fields))
        out = (int8_rows, *measured)

        def quantise(start: int, stop: int) -> None:
            room = np.empty(array.shape[1], np.float32)
            into = (*out, room, room.view(np.int32))
            sparse_kernels.quantise_rows(array, column_scales, start, stop, into)

        self._workers.run(quantise, len(array))
        return torch.from_numpy(int8_rows), measured


def n_together(n_tokens: int, n_latents: int) -> int:
    """Give how many latents are estimated at once."""
    return min(n_latents, max(1, MOST_ESTIMATES // n_tokens))


def has_int8_instructions() -> bool:
    """Tell whether this processor has instructions for products of int8.

    Without them sums of two products may be cut off at 16 bits.
    """
    return bool(torch.cpu._is_vnni_supported())


def has_fast_int8(d_model: int) -> bool:
    """Tell whether products of int8 are fast here, by those instructions, and exact, by a trial."""
    if d_model not in INT8_WIDTHS or not has_int8_instructions():
        return False
    extremes = torch.full((32, d_model), 127, dtype=torch.int8)
    extremes[::2] = -127
    return bool((torch._int_mm(extremes, extremes.T) == extremes.long() @ extremes.long().T).all())


def _as_it_is(rows: Tensor) -> tuple[Tensor, Measured]:
    norms = torch.linalg.vector_norm(rows, dim=1).numpy()
    return rows, Measured(np.ones_like(norms), norms, np.zeros_like(norms))


def _column_scales(x: Tensor, rows: Tensor) -> Floats:
    """Choose powers of two that make x and rows alike in every column: x takes them, rows their inverse.

    A coordinate that is large in all tokens would else leave int8 no digits for the others. Powers of two
    round nothing. Samples will do: any choice is right, a good one leaves fewer candidates.
    """
    in_x, in_rows = (every[:: max(1, len(every) // N_SAMPLED)].square().mean(dim=0) for every in (x, rows))
    exponents = ((in_rows.log2() - in_x.log2()) / 4).round().nan_to_num(0.0, 0.0, 0.0).clamp(-20, 20)
    return torch.exp2(exponents).numpy()


def _widened(measured: Estimates, *, d_model: int) -> Estimates:
    """Make of what was measured what holds in exact arithmetic, for all that is computed in float32.

    In units of rounding, with D = d_model: a dot product is off by at most D |x| |w|, however it is summed;
    a norm by D of itself; the norm of a rounding error by 2 of the row's besides; what compares an estimate
    with the floor by less than 16 of 4 |x| |w| + 2 |b|, where the value reaches the floor. `share` is
    4 (D + 16) units, and the tokens' errors hold three of them: all of that is covered, and twice over.
    """
    share, lost = 4 * (d_model + 16) * UNIT, d_model**0.5 * LEAST_NORM
    norms, row_norms = (
        part.norms.astype(np.float64) * (1 + share) + lost for part in (measured.of_tokens, measured.of_rows)
    )
    errors = measured.of_tokens.error_norms * (1 + share) + 3 * share * norms + lost
    row_errors = measured.of_rows.error_norms * (1 + share) + share * row_norms + lost
    bias = measured.bias + share * np.abs(measured.bias.astype(np.float64)) + LEAST_VALUE
    of_tokens, of_rows = measured.of_tokens.scales, measured.of_rows.scales
    return Estimates(
        measured.product,
        Measured(of_tokens, (norms + errors).astype(np.float32), errors.astype(np.float32)),
        Measured(of_rows, row_norms.astype(np.float32), row_errors.astype(np.float32)),
        bias.astype(np.float32),
    )

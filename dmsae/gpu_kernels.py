"""The kernels of the GPU's step, compiled at first use by Triton.

A program computes one token or one row of weights, in float32, in an order of its own: no two add to the same
place, so same arguments, same bits. What is computed is told by `sparse_gradients.py`, in whose loops each
kernel has its twin (`sparse_kernels.py`). Tensors are contiguous, float32, places int64. `width` is d_model,
which `BLOCK` covers. Under TRITON_INTERPRET=1 all of it runs on a CPU, slowly.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# (Triton has no types, and reads annotations of its own)

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

ROWS = tl.constexpr(4)
"""Rows that a program waits for at once."""
COLUMNS_A_WARP = 256
"""Of a row: 8 for each of a warp's threads."""
MOST_WARPS = 16


def _kernel(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


def launch(kernel: Any, n_programs: int, *arguments: Any, width: int) -> None:
    """Run `n_programs` programs of a kernel that goes over rows of `width` numbers."""
    block, n_warps = layout(width)
    kernel[(n_programs,)](*arguments, BLOCK=block, num_warps=n_warps)


def layout(width: int) -> tuple[int, int]:
    """Give the power of two that covers rows of `width` numbers, and how many warps share one."""
    block: int = triton.next_power_of_2(width)
    return block, max(1, min(MOST_WARPS, block // COLUMNS_A_WARP))


@_kernel
def _sum_rows(rows, places, factors, start, stop, width, BLOCK: tl.constexpr):
    """Add up the rows at `places` times `factors`, from `start` to `stop` of these."""
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, ROWS):
        entries = first + tl.arange(0, ROWS)
        at = tl.load(places + entries, mask=entries < stop, other=0)
        factor = tl.load(factors + entries, mask=entries < stop, other=0.0)
        is_inside = (entries < stop)[:, None] & (columns < width)[None, :]
        tile = tl.load(rows + at[:, None] * width + columns[None, :], mask=is_inside, other=0.0)
        total += tl.sum(tile * factor[:, None], axis=0)
    return total


@_kernel
def decode_tokens(active, weights, x, out, shape, weight, BLOCK: tl.constexpr):
    """Reconstruct one token from every prefix; give the gradients of `weight` / 2 times the squared errors.

    Shapes: active: edges (n_tokens, n_prefixes + 1), where a token's latents of each block begin and the last
    ends, latents and acts; weights: W_dec and b_dec; out: residuals (n_prefixes, n_tokens, width), of prefix
    g the sum of x_hat - x over g and all wider ones; errors (n_tokens, n_prefixes), squared; gradient by act.
    """
    edges, latents, acts = active
    W_dec, b_dec = weights
    residuals, errors, d_acts = out
    n_tokens, n_prefixes, width = shape
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    residual = tl.load(b_dec + columns, mask=is_column, other=0.0)
    residual -= tl.load(x + token * width + columns, mask=is_column, other=0.0)
    edges += token * (n_prefixes + 1)
    for g in range(n_prefixes):
        start, stop = tl.load(edges + g), tl.load(edges + g + 1)
        residual += _sum_rows(W_dec, latents, acts, start, stop, width, BLOCK)
        tl.store(residuals + (g * n_tokens + token) * width + columns, residual, mask=is_column)
        tl.store(errors + token * n_prefixes + g, tl.sum(residual * residual, axis=0))
    tl.debug_barrier()  # what follows reads what this program wrote
    total = tl.zeros([BLOCK], tl.float32)
    for back in range(n_prefixes):
        block = n_prefixes - 1 - back
        place = residuals + (block * n_tokens + token) * width + columns
        total += tl.load(place, mask=is_column, other=0.0)
        tl.store(place, total, mask=is_column)
        end = tl.load(edges + block + 1)
        for first in range(tl.load(edges + block), end, ROWS):
            entries = first + tl.arange(0, ROWS)
            at = tl.load(latents + entries, mask=entries < end, other=0)
            is_inside = (entries < end)[:, None] & is_column[None, :]
            tile = tl.load(W_dec + at[:, None] * width + columns[None, :], mask=is_inside, other=0.0)
            slopes = weight * tl.sum(tile * total[None, :], axis=1)
            tl.store(d_acts + entries, slopes, mask=entries < end)


@_kernel
def gather_gradients(active, inputs, dead, out, shape, weight, BLOCK: tl.constexpr):
    """Gather one latent's gradients from the tokens on which it was active, and add those of a dead one.

    What lies along its decoder row is taken away. A latent without any gradient gets squares of 0, and its
    rows are not written.

    Shapes: active: starts (n_latents + 1), where a latent's tokens begin, tokens, acts and their gradients;
    inputs: blocks (n_latents), which prefix is the first to hold a latent, residuals as `decode_tokens` left
    them, x - b_dec and W_dec; dead: a latent's place among the dead or -1, their encoder, bias and decoder
    gradients; out: encoder, bias and decoder gradients, and each row's sum of squares; shape: n_tokens,
    how many latents have a frozen encoder vector, width.
    """
    starts, tokens, acts, d_acts = active
    blocks, residuals, centred, W_dec = inputs
    places, dead_enc, dead_bias, dead_dec = dead
    d_enc, d_bias, d_dec, squares_enc, squares_dec = out
    n_tokens, n_frozen, width = shape
    latent = tl.program_id(0).to(tl.int64)
    start, stop, place = tl.load(starts + latent), tl.load(starts + latent + 1), tl.load(places + latent)
    columns = tl.arange(0, BLOCK)
    is_column = columns < width
    bias = 0.0
    square_enc = 0.0
    square_dec = 0.0
    if (stop > start) | (place >= 0):
        enc = tl.zeros([BLOCK], tl.float32)
        if latent >= n_frozen:
            enc += _sum_rows(centred, tokens, d_acts, start, stop, width, BLOCK)
        of_prefix = residuals + tl.load(blocks + latent) * n_tokens * width
        dec = weight * _sum_rows(of_prefix, tokens, acts, start, stop, width, BLOCK)
        for first in range(start, stop, BLOCK):
            entries = first + columns
            bias += tl.sum(tl.load(d_acts + entries, mask=entries < stop, other=0.0), axis=0)
        if place >= 0:
            bias += tl.load(dead_bias + place)
            dec += tl.load(dead_dec + place * width + columns, mask=is_column, other=0.0)
            if latent >= n_frozen:
                enc += tl.load(dead_enc + place * width + columns, mask=is_column, other=0.0)
        row = tl.load(W_dec + latent * width + columns, mask=is_column, other=0.0)
        dec -= row * tl.sum(dec * row, axis=0)
        tl.store(d_enc + latent * width + columns, enc, mask=is_column)
        tl.store(d_dec + latent * width + columns, dec, mask=is_column)
        square_enc += tl.sum(enc * enc, axis=0)
        square_dec += tl.sum(dec * dec, axis=0)
    tl.store(d_bias + latent, bias)
    tl.store(squares_enc + latent, square_enc)
    tl.store(squares_dec + latent, square_dec)


@_kernel
def adam_rows(rows, gradient, state, rates, shape, TO_UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Take one step of Adam on one row; `TO_UNIT` divides it by its norm afterwards.

    Shapes: gradient: by row, and each row's sum of squares; where that is 0 the row has no gradient, and what
    stands there is not read; state: means of gradients and of their squares; rates: as
    `sparse_kernels.adam_rates` gives; shape: how many numbers there are in all, width; the last row may be
    shorter.
    """
    slopes, squares = gradient
    means, mean_squares = state
    keep_1, rest_1, keep_2, rest_2, size, per_root, scale, epsilon = rates
    n_numbers, width = shape
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    at = row * width + columns
    is_inside = (columns < width) & (at < n_numbers)
    slope = tl.zeros([BLOCK], tl.float32)
    if tl.load(squares + row) != 0:
        slope += scale * tl.load(slopes + at, mask=is_inside, other=0.0)
    mean = keep_1 * tl.load(means + at, mask=is_inside, other=0.0) + rest_1 * slope
    square = keep_2 * tl.load(mean_squares + at, mask=is_inside, other=0.0) + rest_2 * slope * slope
    value = tl.load(rows + at, mask=is_inside, other=0.0)
    value -= size * mean / (tl.sqrt(square) * per_root + epsilon)
    if TO_UNIT:
        value /= tl.sqrt(tl.sum(value * value, axis=0))
    tl.store(means + at, mean, mask=is_inside)
    tl.store(mean_squares + at, square, mask=is_inside)
    tl.store(rows + at, value, mask=is_inside)

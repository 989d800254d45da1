"""The inner loops of the sparse step, compiled by numba: LLVM in a wheel, no compiler needed.

Compiled at first use, or ahead of it (`compiling.py`), in every process anew: numba would keep what it
compiled as a pickle. To compile fast, loops neither make arrays nor assign to slices of them.

Most work on rows `start` to `stop` of their outputs, so that threads share them, and compute a row the same
way whatever the others are: how rows are shared decides no bit. What the loops are for is told by their
callers, `screening.py`, `sparse_gradients.py` and `row_adam.py`. Arrays are NumPy's, C-contiguous, float32
where not said otherwise.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

_Function = TypeVar("_Function", bound=Callable[..., object])

Array = NDArray[Any]

LANES = 8
"""Marks of the screen are looked at in words of so many bytes."""


def _compiled(function: _Function) -> _Function:
    """Compile when called, to run without the interpreter's lock.

    Sums may be reordered, NaN and infinity stay what they are.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    compile_: Any = numba.njit
    compiled: _Function = compile_(fastmath={"reassoc", "contract", "nsz"}, **options)(function)
    return compiled


@_compiled
def _dot(one: Array, other: Array) -> Any:
    total = np.float32(0)
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@_compiled
def _add_scaled(total: Array, row: Array, factor: Any) -> None:
    for i in range(len(total)):
        total[i] += factor * row[i]


@_compiled
def _add_rows(total: Array, rows: Array, places: Array, factors: Array, start: int, stop: int) -> None:
    """Add rows times factors, four at a time: they are waited for together, and `total` is gone over once."""
    at = start
    while at + 4 <= stop:
        a, b, c, d = rows[places[at]], rows[places[at + 1]], rows[places[at + 2]], rows[places[at + 3]]
        by_a, by_b, by_c, by_d = factors[at], factors[at + 1], factors[at + 2], factors[at + 3]
        for i in range(len(total)):
            total[i] += (by_a * a[i] + by_b * b[i]) + (by_c * c[i] + by_d * d[i])
        at += 4
    while at < stop:
        _add_scaled(total, rows[places[at]], factors[at])
        at += 1


@_compiled
def quantise_rows(rows: Array, column_scales: Array, start: int, stop: int, out: tuple[Array, ...]) -> None:
    """Round `rows * column_scales` to int8 times one scale a row, and measure what that takes away.

    A row too small to be divided by becomes 0. Shapes: out: int8 rows, their scales, the norms of the scaled
    rows and those of the difference, both as float32 sums give them; then room for a row, and the same room
    seen as int32.
    """
    int8_rows, scales, norms, error_norms, scaled, bits = out
    d_model = rows.shape[1]
    for r in range(start, stop):
        row, int8_row = rows[r], int8_rows[r]
        square, missed, largest_bits = np.float32(0), np.float32(0), np.int32(0)
        for i in range(d_model):
            scaled[i] = row[i] * column_scales[i]
            square += scaled[i] * scaled[i]
        for i in range(d_model):  # without their sign, floats are in the order of their bits
            largest_bits = max(largest_bits, bits[i] & np.int32(0x7FFFFFFF))
        largest = np.float32(np.int32(largest_bits).view(np.float32))
        is_small = not (largest > np.float32(1e-30))
        scale = np.float32(1) if is_small else largest / np.float32(127)
        per_scale = np.float32(0) if is_small else np.float32(127) / largest
        for i in range(d_model):
            rounded = np.rint(scaled[i] * per_scale)
            rest = scaled[i] - rounded * scale
            missed += rest * rest
            int8_row[i] = np.int8(rounded)
        scales[r], norms[r], error_norms[r] = scale, np.sqrt(square), np.sqrt(missed)


@_compiled
def _mark(estimates: Array, bounds: Array, needed: Array, norms: Array, marks: Array) -> None:
    per_scale, error, rest = bounds[0], bounds[1], bounds[2]
    for i in range(len(estimates)):
        least = needed[i] * per_scale - norms[i] * error - rest
        marks[i] = np.uint8(0) if np.float32(estimates[i]) < least else np.uint8(1)


@_compiled
def _list_marked(words: Array, marks: Array, listed: Array) -> int:
    n_listed = 0
    for w in range(len(words)):
        if words[w] != 0:
            for i in range(w * LANES, w * LANES + LANES):
                listed[n_listed] = i
                n_listed += marks[i]
    return n_listed


def room_to_find(n_latents: int) -> tuple[Array, ...]:
    """Make room for `find_above` to look at blocks of `n_latents`, or of a few more."""
    marks = np.zeros(-(-n_latents // LANES) * LANES, np.uint8)
    return marks, marks.view(np.uint64), np.empty(len(marks) + LANES, np.int64)


@_compiled
def find_above(
    of_tokens: tuple[Array, ...], of_latents: tuple[Array, ...], floor: Any, at: tuple[int, int],
    room: tuple[Array, ...], found: tuple[Array, ...],
) -> tuple[int, tuple[int, int]]:  # fmt: skip
    """Find the exact values, dot product plus bias, that are positive and at or above `floor`.

    Computes one only where its estimate is not below needed * bounds[0] - norms * bounds[1] - bounds[2]. Goes
    on from row and token `at`, over blocks of latents, over all tokens within a block, over latents within a
    token: so a block's rows stay in the cache. Stops where `found` might not hold the next token's.

    Shapes: of_tokens: estimates (batch, n_latents), bounds (batch, 3), x; of_latents: rows, bias, needed and
    norms (n_latents); room: as `room_to_find` gives for a block; found: tokens, latents and values to be
    written.
    Returns: how many were found, and where to go on.
    """
    estimates, bounds, x = of_tokens
    rows, bias, needed, norms = of_latents
    tokens, latents, values = found
    marks, words, listed = room
    row, token = at
    n_latents, n_found, block = rows.shape[0], 0, len(marks)
    while row < n_latents:
        end = min(row + block, n_latents)
        for i in range(end - row, block):
            marks[i] = 0
        while token < len(x):
            if n_found + block > len(values):
                return n_found, (row, token)
            _mark(estimates[token, row:end], bounds[token], needed[row:end], norms[row:end], marks)
            for i in range(_list_marked(words, marks, listed)):
                j = row + listed[i]
                value = _dot(x[token], rows[j]) + bias[j]
                tokens[n_found], latents[n_found], values[n_found] = token, j, value
                n_found += value >= floor and value > 0
            token += 1
        token = 0
        row += block
    return n_found, (n_latents, 0)


def order_by(keys: Array, n_keys: int) -> tuple[Array, Array]:
    """Sort whole numbers from 0 to n_keys - 1, stably.

    Returns: where each key begins (n_keys + 1), and the permutation.
    """
    starts, places = np.zeros(n_keys + 1, np.int64), np.empty(n_keys, np.int64)
    order = np.empty(len(keys), np.int64)
    order_keys(keys, starts, places, order)
    return starts, order


@_compiled
def order_keys(keys: Array, starts: Array, places: Array, order: Array) -> None:
    """Do what `order_by` gives, in arrays: `starts` all 0, `places` for every key."""
    for i in range(len(keys)):
        starts[keys[i] + 1] += 1
    for key in range(len(places)):
        starts[key + 1] += starts[key]
        places[key] = starts[key]
    for i in range(len(keys)):
        order[places[keys[i]]] = i
        places[keys[i]] += 1


@_compiled
def decode_tokens(
    active: tuple[Array, ...], weights: tuple[Array, ...], x: Array, widths: Array, weight: Any, start: int,
    stop: int, out: tuple[Array, ...],
) -> None:  # fmt: skip
    """Reconstruct tokens from every prefix; give the gradients of `weight` / 2 times their squared errors.

    Shapes: active: starts (batch + 1), where a token's active latents begin, latents, ascending within a
    token, and acts; weights: W_dec and b_dec; out: residuals (n_prefixes, batch, d_model), of prefix g the
    sum of x_hat - x over g and all wider ones; errors (batch, n_prefixes), squared; gradient by act.
    """
    starts, latents, acts = active
    W_dec, b_dec = weights
    residuals, errors, d_acts = out
    n_prefixes, d_model = len(widths), len(b_dec)
    for t in range(start, stop):
        at = starts[t]
        for g in range(n_prefixes):
            residual, x_row = residuals[g, t], x[t]
            if g == 0:
                for i in range(d_model):
                    residual[i] = b_dec[i] - x_row[i]
            else:
                narrower = residuals[g - 1, t]
                for i in range(d_model):
                    residual[i] = narrower[i]
            first = at
            while at < starts[t + 1] and latents[at] < widths[g]:
                at += 1
            _add_rows(residual, W_dec, latents, acts, first, at)
            errors[t, g] = _dot(residual, residual)
        for g in range(n_prefixes - 2, -1, -1):
            _add_scaled(residuals[g, t], residuals[g + 1, t], np.float32(1))
        g = 0
        for at in range(starts[t], starts[t + 1]):
            while latents[at] >= widths[g]:
                g += 1
            d_acts[at] = weight * _dot(W_dec[latents[at]], residuals[g, t])


@_compiled
def gather_gradients(
    active: tuple[Array, ...], residuals: Array, x: Array, W_dec: Array, layout: tuple[Array, int],
    weight: Any, dead: tuple[Array, ...], start: int, stop: int, out: tuple[Array, ...],
) -> None:  # fmt: skip
    """Gather the gradients of latents from the tokens on which each was active.

    Adds the dead latents' part, and takes away what lies along each decoder row. A latent without any
    gradient gets squares of 0, and its rows are not written.

    Shapes: active: starts (n_latents + 1), where a latent's tokens begin, tokens, acts and their gradients;
    residuals as `decode_tokens` left them; layout: prefix widths, and how many latents have a frozen encoder
    vector; dead: a latent's place among the dead or -1, their encoder and decoder gradients; out: encoder and
    decoder gradients, those of the bias, and each row's sum of squares.
    """
    starts, tokens, acts, d_acts = active
    widths, n_frozen = layout
    places, dead_enc, dead_dec = dead
    d_enc, d_dec, d_bias, squares_enc, squares_dec = out
    g = 0
    for j in range(start, stop):
        while j >= widths[g]:
            g += 1
        d_bias[j], squares_enc[j], squares_dec[j] = 0, 0, 0
        of_bias = np.float32(0)
        if starts[j] == starts[j + 1] and places[j] < 0:
            continue
        enc, dec, row = d_enc[j], d_dec[j], W_dec[j]
        for i in range(len(dec)):
            enc[i], dec[i] = 0, 0
        if j >= n_frozen:
            _add_rows(enc, x, tokens, d_acts, starts[j], starts[j + 1])
        _add_rows(dec, residuals[g], tokens, acts, starts[j], starts[j + 1])
        for at in range(starts[j], starts[j + 1]):
            of_bias += d_acts[at]
        d_bias[j] = of_bias
        for i in range(len(dec)):
            dec[i] *= weight
        if places[j] >= 0:
            if j >= n_frozen:
                _add_scaled(enc, dead_enc[places[j]], np.float32(1))
            _add_scaled(dec, dead_dec[places[j]], np.float32(1))
        _add_scaled(dec, row, -_dot(dec, row))
        squares_enc[j], squares_dec[j] = _dot(enc, enc), _dot(dec, dec)


def adam_rates(lr: float, betas: tuple[float, float], n_steps: int, *, scale: float, epsilon: float) -> Array:
    """Give what `adam_rows` multiplies by in its step number `n_steps`, from 1, gradients by `scale`."""
    beta_1, beta_2 = betas
    size, root = lr / (1 - beta_1**n_steps), (1 - beta_2**n_steps) ** 0.5
    return np.array([beta_1, 1 - beta_1, beta_2, 1 - beta_2, size, 1 / root, scale, epsilon], np.float32)


@_compiled
def adam_rows(
    rows: Array, gradient: tuple[Array, Array], state: tuple[Array, Array], rates: Array, to_unit: bool,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Take one step of Adam on rows `start` to `stop`; `to_unit` divides each by its norm afterwards.

    Shapes: gradient: by row, and each row's sum of squares; where that is 0 the row has no gradient, and what
    stands there is not read; state: means of gradients and of their squares; rates: as `adam_rates` gives.
    """
    gradients, squares = gradient
    first, second = state
    keep_1, rest_1, keep_2, rest_2 = rates[0], rates[1], rates[2], rates[3]
    size, per_root, scale, epsilon = rates[4], rates[5], rates[6], rates[7]
    for r in range(start, stop):
        row, mean, square, slopes = rows[r], first[r], second[r], gradients[r]
        if squares[r] == 0:
            for i in range(len(row)):
                mean[i] *= keep_1
                square[i] *= keep_2
                row[i] -= size * mean[i] / (np.sqrt(square[i]) * per_root + epsilon)
        else:
            for i in range(len(row)):
                slope = slopes[i] * scale
                mean[i] = keep_1 * mean[i] + rest_1 * slope
                square[i] = keep_2 * square[i] + rest_2 * slope * slope
                row[i] -= size * mean[i] / (np.sqrt(square[i]) * per_root + epsilon)
        if to_unit:
            per_norm = np.float32(1) / np.sqrt(_dot(row, row))
            for i in range(len(row)):
                row[i] *= per_norm

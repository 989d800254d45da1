"""What the compiled loops give must not depend on where their arrays lie in memory.

LLVM guards vector code by checks of how far arrays are apart: where they lie close together it takes another
path, and another order of summation. In a training, the allocator decides how close they lie.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dmsae import sparse_kernels

Arrays = dict[str, NDArray[Any]]

N_TOKENS, N_LATENTS, D_MODEL, K = 160, 40, 32, 12  # so that a latent is active on some 48 tokens
WIDTHS = np.array([16, 28, N_LATENTS])
FACTOR = np.float32(0.37)


def draw() -> Arrays:
    """Inputs of all loops, by name."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    latents = np.sort(random.permuted(np.tile(np.arange(N_LATENTS), (N_TOKENS, 1)), axis=1)[:, :K]).ravel()
    starts, order = sparse_kernels.order_by(latents, N_LATENTS)
    return {
        "x": normal(N_TOKENS, D_MODEL), "W_enc": normal(N_LATENTS, D_MODEL),
        "W_dec": normal(N_LATENTS, D_MODEL),
        "b_enc": normal(N_LATENTS), "b_dec": normal(D_MODEL), "acts": np.abs(normal(len(latents))),
        "d_acts": normal(len(latents)), "latents": latents, "token_starts": np.arange(N_TOKENS + 1) * K,
        "latent_starts": starts, "tokens": np.repeat(np.arange(N_TOKENS), K)[order],
        "residuals": normal(len(WIDTHS), N_TOKENS, D_MODEL), "places": np.arange(N_LATENTS) % 5 - 1,
        "dead_enc": normal(4, D_MODEL), "dead_dec": normal(4, D_MODEL), "squares": np.abs(normal(N_LATENTS)),
        "first": normal(N_LATENTS, D_MODEL), "second": np.abs(normal(N_LATENTS, D_MODEL)),
        "ones": np.ones(D_MODEL, np.float32), "estimates": normal(N_TOKENS, N_LATENTS),
        "bounds": np.abs(normal(N_TOKENS, 3)), "needed": normal(N_LATENTS),
        "norms": np.abs(normal(N_LATENTS)),
    }  # fmt: skip


def room() -> Arrays:
    """Outputs of all loops, by name."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "int8": ((N_LATENTS, D_MODEL), np.int8), "scales": ((N_LATENTS,), np.float32),
        "row_norms": ((N_LATENTS,), np.float32), "error_norms": ((N_LATENTS,), np.float32),
        "sums": ((len(WIDTHS), N_TOKENS, D_MODEL), np.float32),
        "errors": ((N_TOKENS, len(WIDTHS)), np.float32),
        "slopes": ((N_TOKENS * K,), np.float32), "d_enc": ((N_LATENTS, D_MODEL), np.float32),
        "d_dec": ((N_LATENTS, D_MODEL), np.float32), "d_bias": ((N_LATENTS,), np.float32),
        "squares_enc": ((N_LATENTS,), np.float32), "squares_dec": ((N_LATENTS,), np.float32),
        "found_tokens": ((7000,), np.int64), "found_latents": ((7000,), np.int64),
        "found": ((7000,), np.float32), "scaled": ((D_MODEL,), np.float32),
    }  # fmt: skip
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}


def quantise(a: Arrays) -> None:
    scaled = a["scaled"]
    out = (a["int8"], a["scales"], a["row_norms"], a["error_norms"], scaled, scaled.view(np.int32))
    sparse_kernels.quantise_rows(a["W_enc"], a["ones"], 0, N_LATENTS, out)


def find(a: Arrays) -> None:
    of_tokens = (a["estimates"], a["bounds"], a["x"])
    of_latents = (a["W_enc"], a["b_enc"], a["needed"], a["norms"])
    found = (a["found_tokens"], a["found_latents"], a["found"])
    marks = sparse_kernels.room_to_find(16)
    sparse_kernels.find_above(of_tokens, of_latents, np.float32(0.1), (0, 0), marks, found)


def decode(a: Arrays) -> None:
    active, out = (a["token_starts"], a["latents"], a["acts"]), (a["sums"], a["errors"], a["slopes"])
    weights = (a["W_dec"], a["b_dec"])
    sparse_kernels.decode_tokens(active, weights, a["x"], WIDTHS, FACTOR, 0, N_TOKENS, out)


def gather(a: Arrays) -> None:
    active = (a["latent_starts"], a["tokens"], a["acts"], a["d_acts"])
    dead = (a["places"], a["dead_enc"], a["dead_dec"])
    out = (a["d_enc"], a["d_dec"], a["d_bias"], a["squares_enc"], a["squares_dec"])
    sparse_kernels.gather_gradients(
        active, a["residuals"], a["x"], a["W_dec"], (WIDTHS, 3), FACTOR, dead, 0, N_LATENTS, out
    )


def adam(a: Arrays) -> None:
    rates = sparse_kernels.adam_rates(1e-3, (0.9, 0.999), 3, scale=0.7, epsilon=1e-8)
    gradient, state = (a["W_enc"], a["squares"]), (a["first"], a["second"])
    sparse_kernels.adam_rows(a["W_dec"], gradient, state, rates, True, 0, N_LATENTS)


class Asked(dict[str, NDArray[Any]]):
    """Arrays that remember which of them were asked for."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> NDArray[Any]:
        self.names.append(name)
        return super().__getitem__(name)


def side_by_side(first: NDArray[Any], second: NDArray[Any], *, gap: int) -> list[NDArray[Any]]:
    """Copy two arrays into one piece of memory, `gap` times 4 bytes apart, or as much more as types need."""
    memory = np.zeros(first.nbytes + second.nbytes + 4 * gap + 16, np.uint8)
    copies, at = [], 0
    for array in (first, second):
        at += -(memory.ctypes.data + at) % array.itemsize
        copy = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copies.append(copy)
        at += array.nbytes + 4 * gap
    return copies


@pytest.mark.parametrize("loop", [quantise, find, decode, gather, adam])
@pytest.mark.parametrize("gap", [0, 3])
def test_no_bit_depends_on_where_arrays_lie(loop: Callable[[Arrays], None], gap: int) -> None:
    given = {**draw(), **room()}
    apart = Asked({name: array.copy() for name, array in given.items()})
    loop(apart)
    names = list(apart.names)

    for first, second in permutations(names, 2):
        arrays = {name: given[name].copy() for name in names}
        arrays[first], arrays[second] = side_by_side(given[first], given[second], gap=gap)
        loop(arrays)
        for name in names:
            assert arrays[name].tobytes() == apart[name].tobytes(), (first, second, name)

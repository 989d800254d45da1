"""Which compiled loops does a training on a CPU need, and how do they come to be ready when it begins?

Compiling takes seconds, in which a cycle loads and harvests anyway: it is begun in a thread of its own. A
loop that is called before it is ready is waited for, or compiled by its caller; neither decides a bit.
"""

import threading
from collections.abc import Iterator
from typing import Any

from numba import boolean, float32, int8, int32, int64, types, uint8, uint64

from dmsae import sparse_kernels
from dmsae.config import CycleConfig
from dmsae.estimates import has_int8_instructions
from dmsae.sparse_step import LEAST_INT8_PRODUCT

MOST_D_MODEL = 2**14
"""No model is wider; how wide one is, is not known when compiling begins."""

FLOATS, MATRIX, RESIDUALS, LONGS = float32[::1], float32[:, ::1], float32[:, :, ::1], int64[::1]
PART = (int64, int64)
"""From which row to which a loop goes."""

Compilation = tuple[Any, tuple[Any, ...]]
"""A loop, and the types of its arguments."""


def begin_compiling(config: CycleConfig) -> threading.Thread | None:
    """Start compiling what this cycle's training calls, if it calls anything compiled.

    Gives the thread. A process that ends waits for it, for seconds at most.
    """
    if config.device != "cpu" or not config.has_fast_step:
        return None
    thread = threading.Thread(target=compile_loops, args=(kinds_of_estimates(config),), name="compiling")
    thread.start()
    return thread


def compile_loops(kinds: list[Any]) -> None:
    """Compile each loop of a training, those for estimates of these types."""
    for loop, types_ in loops(kinds):
        loop.compile(types_)


def kinds_of_estimates(config: CycleConfig) -> list[Any]:
    """Give the types that estimates may have, before the model's width decides between them."""
    n_most = config.training.batch_tokens * config.sae.n_latents * MOST_D_MODEL
    may_be_int8 = has_int8_instructions() and n_most >= LEAST_INT8_PRODUCT
    return [int32, float32] if may_be_int8 else [float32]


def loops(kinds: list[Any]) -> Iterator[Compilation]:
    """Give each loop with the types that a training calls it with, in the order of a step."""
    kernels: Any = sparse_kernels
    found = _tuple(LONGS, LONGS, FLOATS)
    rounded = _tuple(int8[:, ::1], FLOATS, FLOATS, FLOATS, FLOATS, int32[::1])
    yield kernels.quantise_rows, (MATRIX, FLOATS, *PART, rounded)
    of_latents, at = _tuple(MATRIX, FLOATS, FLOATS, FLOATS), _tuple(int64, int64)
    marks = _tuple(uint8[::1], uint64[::1], LONGS)
    for kind in kinds:
        of_tokens = _tuple(kind[:, ::1], MATRIX, MATRIX)
        yield kernels.find_above, (of_tokens, of_latents, float32, at, marks, found)
    yield kernels.order_keys, (LONGS, LONGS, LONGS, LONGS)
    decoder, decoded = _tuple(MATRIX, FLOATS), _tuple(RESIDUALS, MATRIX, FLOATS)
    yield kernels.decode_tokens, (found, decoder, MATRIX, LONGS, float32, *PART, decoded)
    active, dead, layout = _tuple(*found, FLOATS), _tuple(LONGS, MATRIX, MATRIX), _tuple(LONGS, int64)
    slopes = _tuple(MATRIX, MATRIX, FLOATS, FLOATS, FLOATS)
    given = (active, RESIDUALS, MATRIX, MATRIX, layout, float32, dead)
    yield kernels.gather_gradients, (*given, *PART, slopes)
    gradient, moments = _tuple(MATRIX, FLOATS), _tuple(MATRIX, MATRIX)
    yield kernels.adam_rows, (MATRIX, gradient, moments, FLOATS, boolean, *PART)


def _tuple(*members: Any) -> Any:
    make: Any = types.Tuple
    return make(members)

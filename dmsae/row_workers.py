"""How are loops over rows shared by threads, and where do their large arrays stay from step to step?"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

PARTS_EACH = 8
"""Parts of a loop for each thread."""


class RowWorkers:
    """Runs loops over rows on as many threads as torch had when this was made."""

    def __init__(self) -> None:
        self.n_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.n_threads) if self.n_threads > 1 else None

    def run(self, loop: Callable[[int, int], None], n_rows: int) -> None:
        """Call `loop(start, stop)` on parts of `n_rows` rows: several a thread, since some take longer."""
        n_parts = max(1, min(n_rows, PARTS_EACH * self.n_threads)) if self._pool else 1
        edges = [n_rows * part // n_parts for part in range(n_parts + 1)]
        self.run_each(lambda part: loop(edges[part], edges[part + 1]), n_parts)

    def run_each(self, task: Callable[[int], None], n_tasks: int) -> None:
        """Call `task` on 0 to n_tasks - 1."""
        if self._pool is None:
            for number in range(n_tasks):
                task(number)
        else:
            list(self._pool.map(task, range(n_tasks)))


class Workspace:
    """Arrays that are made once and overwritten in every step: fresh memory costs more than what it takes."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Give the array of that name, its contents undefined; made anew where shape or type differ."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array

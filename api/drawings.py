"""Who draws, when, and what is kept of it? One figure at a time; the last ones stay for those who ask next.

A job that runs changes every few seconds, and everybody who looks at it asks for the same figures anew.
"""

from collections.abc import Callable

from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool

from dmsae.errors import Unavailable

MOST_WAITING = 32
"""Figures that wait for their turn in one process; more are asked for again later."""
MOST_KEPT_BYTES = 16 << 20


class Drawings:
    """The figures of one process, by what decides them; those that wait hold no thread."""

    def __init__(self) -> None:
        self._turn = CapacityLimiter(1)
        self._kept: dict[str, bytes] = {}

    async def draw(self, key: str, work: Callable[[], bytes]) -> bytes:
        """Give what was drawn under a key, or draw it in a thread.

        Raises:
            Unavailable: too many figures wait.
        """
        if key in self._kept:
            return self._kept[key]
        if self._turn.statistics().tasks_waiting >= MOST_WAITING:
            raise Unavailable("Too many figures wait to be drawn; try again in a moment.")
        async with self._turn:
            if key not in self._kept:
                self._keep(key, await run_in_threadpool(work))
            return self._kept[key]

    def _keep(self, key: str, drawn: bytes) -> None:
        self._kept[key] = drawn
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > MOST_KEPT_BYTES:
            self._kept.pop(next(iter(self._kept)))

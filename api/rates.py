"""How often may one key ask? A bucket of tokens for each, filled evenly, in this process alone.

With several replicas of the API each counts for itself, so a key may ask that many times as much of all.
It stops a loop that got out of hand; who gets the devices is decided in Postgres.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_BUCKETS = 10_000
"""Above it the full ones are forgotten: a bucket that is made anew is full."""


@dataclass
class _Bucket:
    n_tokens: float
    filled_at: float


class Buckets:
    """How much is left for each key; safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, *, per_s: float, burst: int) -> float:
        """Take a token and give 0, or take none and give in how many seconds there will be one."""
        if per_s == 0:
            return 0.0
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(key_id)
            if bucket is None:
                self._forget_full(now, per_s=per_s, burst=burst)
                bucket = self._buckets[key_id] = _Bucket(burst, now)
            bucket.n_tokens = min(burst, bucket.n_tokens + (now - bucket.filled_at) * per_s)
            bucket.filled_at = now
            if bucket.n_tokens < 1:
                return (1 - bucket.n_tokens) / per_s
            bucket.n_tokens -= 1
            return 0.0

    def _forget_full(self, now: float, *, per_s: float, burst: int) -> None:
        if len(self._buckets) < MOST_BUCKETS:
            return
        full_after_s = burst / per_s
        self._buckets = {
            key_id: bucket
            for key_id, bucket in self._buckets.items()
            if now - bucket.filled_at < full_after_s
        }

"""How long do the slowest hundredth take, beside their bar?"""

import statistics
from collections.abc import Iterable
from typing import Any


def p99_row(name: str, seconds: Iterable[float], *, bar_ms: float) -> dict[str, Any]:
    """Give the 99th percentile and the median of some times, as a row in milliseconds."""
    ordered = sorted(1e3 * each for each in seconds)
    p99_ms = round(ordered[int(0.99 * len(ordered))], 2)
    return {
        "name": name,
        "value": p99_ms,
        "unit": "ms",
        "against": bar_ms,
        "ratio": round(p99_ms / bar_ms, 3),
        "spread": [round(ordered[0], 2), round(ordered[-1], 2)],
        "median_ms": round(statistics.median(ordered), 2),
        "n_asked": len(ordered),
        "holds": p99_ms < bar_ms,
    }

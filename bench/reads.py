"""How many times a second is a job shown, beside the least that the same framework can do for one row?

Services of their own, one process of the API as `dmsae up` starts it, and one of `bench/plain_api.py`, each
asked for a job over `N_CONNECTIONS` connections, as fast as it answers, for `ROUND_S`, in turns, `N_ROUNDS`
times. Rows, each with the API's requests a second, against the other's, and the median ratio of the rounds:

- `reads.queued`: of a job that waits, so that its place and why it waits are told too;
- `reads.ended`: of one that was cancelled.

Each says whether its bar `holds`.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.asking import Asker
from bench.streams import BODY, CHECKOUT, Started, started
from dmsae.local.ports import pick_free
from dmsae.local.processes import Child, Program

N_CONNECTIONS = 8
N_ROUNDS = 5
ROUND_S = 2.0
LEAST_RATIO = 0.5


def read_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give both rows, from one pair of processes."""
    if not is_wanted("reads"):
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder, ExitStack() as stack:
        api = started(Path(folder), stack)
        job_id = asyncio.run(submit(api.url))
        plain_url = start_plain(Path(folder), stack, api, job_id)
        for state in ("queued", "ended"):
            if state == "ended":
                asyncio.run(cancel(api.url, job_id))
            pairs = [asyncio.run(in_turn(api.url, plain_url, job_id)) for _ in range(N_ROUNDS)]
            yield row_of(f"reads.{state}", pairs)


def start_plain(folder: Path, stack: ExitStack, api: Started, job_id: str) -> str:
    """Start the plain API beside ours; give its URL."""
    [port] = pick_free(1)
    url = f"http://127.0.0.1:{port}"
    plain = Child(
        Program(
            name="plain",
            command=(sys.executable, "-m", "bench.plain_api", str(port), job_id),
            folder=CHECKOUT,
            log=folder / "plain.log",
            env=api.env,
            is_ready=lambda: is_up(url),
            stop_timeout_s=15,
        )
    )
    stack.callback(plain.stop)
    plain.start()
    plain.wait_ready(60)
    return url


def is_up(url: str) -> bool:
    """Tell whether something answers."""
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


async def submit(url: str) -> str:
    """Submit a job, and give its id."""
    async with Asker(url) as asker:
        return str((await asker.ask_for_json("POST", "/distillations", BODY))["id"])


async def cancel(url: str, job_id: str) -> None:
    """Cancel a job."""
    async with Asker(url) as asker:
        await asker.ask_for_json("POST", f"/jobs/{job_id}/cancel")


async def in_turn(url: str, plain_url: str, job_id: str) -> tuple[float, float]:
    """Give how many times a second each of both answered."""
    return await rate_of(url, job_id), await rate_of(plain_url, job_id)


async def rate_of(url: str, job_id: str) -> float:
    """Ask over all connections for a while; give the answers a second."""
    async with Asker(url) as asker:
        request = asker.request("GET", f"/jobs/{job_id}")
        ends_at = time.perf_counter() + ROUND_S

        async def ask_on() -> int:
            n_asked = 0
            while time.perf_counter() < ends_at:
                await asker.ask(request)
                n_asked += 1
            return n_asked

        return sum(await asyncio.gather(*(ask_on() for _ in range(N_CONNECTIONS)))) / ROUND_S


def row_of(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Put rounds into a row; the first one warms up."""
    ours, plain = (statistics.median(rates) for rates in zip(*pairs[1:], strict=True))
    ratios = [our / other for our, other in pairs[1:]]
    return {
        "name": name,
        "value": round(ours, 1),
        "unit": "requests/s",
        "against": round(plain, 1),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "holds": statistics.median(ratios) >= LEAST_RATIO,
    }

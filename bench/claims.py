"""How fast does the shared queue hand out cycles, and how fairly?

A PostgreSQL of its own, as `dmsae up` starts it; `N_WORKERS` simulated workers, each with a connection of its
own, send the very statement of `dmsae.service.claims`, and close what they claimed by the smallest statement
that ends attempt, cycle and job. Real workers sit on other machines, so pgbench plays them where it counts.
Rows, `N_OWNERS` owners each:

- `claims.closed`: claims a second while all workers claim as fast as they can over warm connections, from
  10,000 queued cycles down to none;
- `claims.limited`: the same while an owner has a limit on running cycles, so that claims are made alone;
- `claims.shares`: the furthest that an owner is from its share after half of them, at weights 1 to 4;
- `claims.double`: cycles that were claimed twice;
- `claims.open.N`: 99th percentile of a claim's time in ms, from when it was due, at 100 claims a second;
- `claims.cached.N`: the same with 500 cache keys in the queue, 8 at each worker;
- `claims.bound`: the longest wait of a cycle of low priority over the starvation bound, while more cycles of
  normal priority come than can be run.

Each says whether its bar `holds`.
"""

import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psycopg

from bench.claim_rows import FINISH, Planted, pgbench_script, plant, told_claim_statement
from bench.percentiles import p99_row
from dmsae.local.passwords import generate_passwords
from dmsae.local.postgres import find_binary
from dmsae.local.services import choose_ports, services_in, start_service
from dmsae.service.claims import QueueRules
from dmsae.service.logs import configure_logs
from dmsae.service.migrating import migrate

N_WORKERS = 64
N_OWNERS = 20
N_WARM = 40 * N_WORKERS
"""Claims before the clock starts: by then each connection has planned what it sends."""
RATE = 100
OPEN_S = 20.0
LARGEST_SHARE_ERROR = 0.02
BOUND_S = 3.0
CLAIMED = """
SELECT c.owner_id, c.id, a.opened_at, extract(epoch FROM a.opened_at - c.queued_at)::float8
FROM attempts a JOIN cycles c ON c.id = a.cycle_id ORDER BY a.fence
"""


@dataclass(frozen=True)
class Seen:
    """What the rows tell of a run."""

    owners: list[str]
    """Of the cycles, in the order in which they were claimed."""
    n_double: int
    rate: float
    """Claims a second, once all connections are warm."""
    longest_wait_s: float


def claim_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give the rows that are wanted, each from a database of its own."""
    groups = (
        ("closed", closed),
        ("limited", limited),
        ("open", opened),
        ("cached", cached),
        ("bound", bound),
    )
    wanted = [rows for name, rows in groups if is_wanted(f"claims.{name}")]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        parts = services_in(
            Path(folder), logs=Path(folder), numbers=choose_ports({}), passwords=generate_passwords()
        )
        server = start_service(parts.postgres)
        try:
            for number, rows in enumerate(wanted):
                for row in rows(parts.postgres, f"bench_{number}"):
                    is_rate = row["unit"] == "claims/s"
                    holds = row["value"] >= row["against"] if is_rate else row["value"] <= row["against"]
                    yield {**row, "holds": holds}
        finally:
            server.stop()


def closed(server: Any, name: str) -> Iterator[dict[str, Any]]:
    """All workers at once, as fast as they can."""
    url = database(server, f"{name}_equal")
    planted = plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=10_000 + N_WARM)
    seen = drain(url, n_claims=10_000 + N_WARM)
    yield rate_row("claims.closed", seen, at_least=1000)
    yield {"name": "claims.double", "value": seen.n_double, "unit": "cycles", "against": 0}
    yield share_row("claims.shares.equal", seen, planted, n_claims=5000)
    url = database(server, f"{name}_weights")
    weights = [1 + i % 4 for i in range(N_OWNERS)]
    planted = plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=10_000, weights=weights)
    seen = drain(url, n_claims=5000)
    yield share_row("claims.shares.weighted", seen, planted, n_claims=4800)


def rate_row(name: str, seen: Seen, *, at_least: int) -> dict[str, Any]:
    """Tell the claims a second."""
    return {
        "name": name,
        "value": seen.rate,
        "unit": "claims/s",
        "against": at_least,
        "ratio": round(seen.rate / at_least, 3),
        "n_claims": len(seen.owners),
        "longest_wait_s": round(seen.longest_wait_s, 1),
    }


def limited(server: Any, name: str) -> Iterator[dict[str, Any]]:
    """The same, one claim after the other."""
    url = database(server, name)
    plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=5000 + N_WARM)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE owners SET max_running = 1000 WHERE id = 'own_000'")
    yield rate_row("claims.limited", drain(url, n_claims=5000 + N_WARM), at_least=500)


def share_row(name: str, seen: Seen, planted: Planted, *, n_claims: int) -> dict[str, Any]:
    """Compare what each owner got of the first claims with its share."""
    got = Counter(seen.owners[:n_claims])
    total = sum(planted.weights.values())
    errors = [abs(got[owner] / (n_claims * weight / total) - 1) for owner, weight in planted.weights.items()]
    return {
        "name": name,
        "value": round(max(errors), 4),
        "unit": "of the share",
        "against": LARGEST_SHARE_ERROR,
    }


def opened(server: Any, name: str) -> Iterator[dict[str, Any]]:
    """100 claims a second, whatever the answers take."""
    for n_cycles, bar_ms in ((1_000, 20), (10_000, 20), (100_000, 50)):
        url = database(server, f"{name}_{n_cycles}")
        planted = plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=n_cycles)
        yield open_row(f"claims.open.{n_cycles}", url, planted, bar_ms=bar_ms)


def cached(server: Any, name: str) -> Iterator[dict[str, Any]]:
    """The same where workers hold activations of a part of the queue each."""
    for n_cycles, bar_ms in ((10_000, 20), (100_000, 50)):
        url = database(server, f"{name}_{n_cycles}")
        planted = plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=n_cycles, n_keys=500)
        yield open_row(f"claims.cached.{n_cycles}", url, planted, bar_ms=bar_ms)


def open_row(name: str, url: str, planted: Planted, *, bar_ms: int) -> dict[str, Any]:
    """Send claims by the clock, over connections that are warm, and measure each from when it was due."""
    statement, seconds = told_claim_statement(QueueRules()), list[float]()
    n_claims = min(int(RATE * OPEN_S), planted.n_cycles - N_WORKERS)
    idle: SimpleQueue[psycopg.Connection[Any]] = SimpleQueue()
    for worker in planted.workers:
        connection = psycopg.connect(url, autocommit=True, prepare_threshold=1)
        for _ in range(2):
            with connection.transaction(force_rollback=True):
                connection.execute(statement, planted.claim(worker))
        idle.put(connection)

    def claim(due: float, worker: str) -> None:
        connection = idle.get()
        row = connection.execute(statement, planted.claim(worker)).fetchone()
        seconds.append(time.perf_counter() - due)
        if row is not None:
            connection.execute(FINISH, {"attempt": row[0]})
        idle.put(connection)

    with ThreadPoolExecutor(N_WORKERS) as pool:
        begun = time.perf_counter() + 0.1
        for number in range(n_claims):
            due = begun + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(claim, due, planted.workers[number % N_WORKERS])
    while not idle.empty():
        idle.get().close()
    return p99_row(name, seconds, bar_ms=bar_ms)


def bound(server: Any, name: str) -> Iterator[dict[str, Any]]:
    """Cycles of normal priority keep coming; those of low priority wait for their bound alone."""
    url = database(server, name)
    rules = QueueRules(starvation_s=BOUND_S)
    planted = plant(url, n_owners=N_OWNERS, n_workers=N_WORKERS, n_cycles=N_OWNERS, priority="low")
    lows = set(planted.cycles)
    stop = threading.Event()

    def feed() -> None:
        while not stop.is_set():
            plant(url, n_owners=0, n_workers=0, n_cycles=200, owners=list(planted.weights))
            stop.wait(0.25)

    feeder = threading.Thread(target=feed)
    feeder.start()
    waits: dict[str, float] = {}
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            statement, begun = told_claim_statement(rules), time.monotonic()
            while len(waits) < len(lows) and time.monotonic() - begun < 10 * BOUND_S:
                row = connection.execute(statement, planted.claim(planted.workers[0])).fetchone()
                if row is not None:
                    if row[2] in lows:
                        waits[row[2]] = row[3]
                    connection.execute(FINISH, {"attempt": row[0]})
                time.sleep(0.002)
    finally:
        stop.set()
        feeder.join()
    yield {
        "name": "claims.bound",
        "value": round(max(waits.values()), 2),
        "unit": "s",
        "against": BOUND_S,
        "ratio": round(max(waits.values()) / BOUND_S, 3),
        "spread": [round(min(waits.values()), 2), round(max(waits.values()), 2)],
        "n_claimed": f"{len(waits)} of {len(lows)}",
    }


def drain(url: str, *, n_claims: int) -> Seen:
    """Let all workers claim and close in turn, by pgbench; read from the rows what they did."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(pgbench_script(QueueRules()))
        script.flush()
        each = n_claims // N_WORKERS
        many = ["-c", str(N_WORKERS), "-j", "2", "-t", str(each)]
        command = [str(find_binary("pgbench")), "-n", "-M", "prepared", *many, "-D", "n=0"]
        subprocess.run([*command, "-f", script.name, url], check=True, stdout=subprocess.DEVNULL)
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(CLAIMED).fetchall()
    seconds = (rows[-1][2] - rows[N_WARM][2]).total_seconds()
    return Seen(
        owners=[row[0] for row in rows],
        n_double=len(rows) - len({row[1] for row in rows}),
        rate=round((len(rows) - 1 - N_WARM) / seconds, 1),
        longest_wait_s=max(row[3] for row in rows),
    )


def database(server: Any, name: str) -> str:
    """Make and migrate a database; give psycopg's URL of it."""
    configure_logs("WARNING")
    server.ensure_database(name)
    migrate(server.url(name))
    return str(server.url(name)).replace("+psycopg", "")

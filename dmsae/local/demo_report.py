"""What came out of the demo: collected over HTTP, downloaded by presigned links, shown as tables."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from dmsae.client.answers import is_loopback
from dmsae.client.client import Answer, Client
from dmsae.errors import DmsaeError, Unavailable

N_STRONGEST = 10
PHASES = ("loading", "harvesting", "training", "attributing", "evaluating", "uploading")
SAME_NAMES = (
    "n_candidates", "n_core", "n_new", "n_dropped", "retention", "share", "l0", "core_density",
    "explained_variance", "lr_kept", "ce_increase", "n_tokens", "n_tokens_harvested", "n_tokens_cached",
    "activation_wait_s", "seconds",
)  # fmt: skip
"""What the report takes from a cycle's metrics as it is."""


def collect(client: Client, job_id: str) -> dict[str, Any]:
    """Ask for cycles, origins and core of a finished distillation, the core's strongest latents first."""
    cycles = [cycle for cycle in client.distillations.cycles(job_id) if cycle["state"] == "succeeded"]
    core = sorted(client.distillations.core(job_id), key=lambda latent: latent["share"] or 0.0, reverse=True)
    names = ("latent_id", "origin_cycle", "times_selected", "share")
    return {
        "distillation_id": job_id,
        "cycles": [_cycle_of(cycle) for cycle in cycles],
        "origins": client.distillations.origins(job_id)["matrix"],
        "core": [{name: latent[name] for name in names} for latent in core],
        "seconds": _phase_seconds(cycles),
    }


def download(client: Client, job_id: str, folder: Path) -> list[Path]:
    """Download every stored file by its presigned link, and compare its sha256.

    Raises:
        Unavailable: the store does not answer, or its bytes are not those that were recorded.
    """
    paths = []
    for artifact in client.jobs.artifacts(job_id):
        path = folder / f"cycle-{artifact['cycle_index']}" / artifact["name"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DmsaeError(f"The stored file {artifact['name']!r} points out of its folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(artifact["url"], path, sha256=artifact["sha256"])
        paths.append(path)
    return paths


def show(report: dict[str, Any], console: Console) -> None:
    """Show the cycles, the matrix of origins, the strongest latents and how the time was spent."""
    console.print(_cycle_table(report["cycles"]))
    console.print(_origin_table(report["origins"]))
    console.print(_core_table(report["core"][:N_STRONGEST], job_id=report["distillation_id"]))
    console.print(_time_table(report["cycles"], report["seconds"]))
    seconds, peak = report["seconds"]["total"], report["peak_memory_bytes"]
    console.print(f"{seconds:.0f} s in all, {peak / 2**30:.1f} GiB at most.")


def _cycle_of(cycle: Answer) -> dict[str, Any]:
    metrics = cycle["metrics"]
    return {
        "index": cycle["index"],
        **{name: metrics[name] for name in SAME_NAMES},
        "truncated": metrics["is_truncated"],
        "phase_seconds": _in_order(metrics["phase_seconds"]),
    }


def _in_order(phase_seconds: Mapping[str, float]) -> dict[str, float]:
    """Put phases in the order in which they pass: Postgres keeps none."""
    return {phase: phase_seconds[phase] for phase in PHASES if phase in phase_seconds}


def _phase_seconds(cycles: list[Answer]) -> dict[str, float]:
    seconds: Counter[str] = Counter()
    for cycle in cycles:
        seconds.update(cycle["metrics"]["phase_seconds"])
    return _in_order(seconds)


def _download(url: str, path: Path, *, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with (
            httpx.stream("GET", url, timeout=60, trust_env=not is_loopback(url)) as response,
            path.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes():
                digest.update(chunk)
                file.write(chunk)
    except httpx.HTTPError as error:
        raise Unavailable(f"The object store does not give {path.name!r}: {error}") from error
    if digest.hexdigest() != sha256:
        raise Unavailable(f"The object store gives other bytes for {path.name!r} than were recorded.")


def _cycle_table(cycles: list[dict[str, Any]]) -> Table:
    names = ("cycle", "p_1", "core", "new", "kept", "retention", "density", "share", "EV", "CE")
    caption = "p_1: candidates; density: the core's median; EV, CE increase in nats: the whole SAE's"
    table = Table(*names, title="Cycles", caption=caption, box=SIMPLE, padding=(0, 1, 0, 0))
    for cycle in cycles:
        retention = "-" if cycle["retention"] is None else f"{cycle['retention']:.3f}"
        numbers = (cycle["core_density"], cycle["share"], cycle["explained_variance"], cycle["ce_increase"])
        counts = (cycle["index"], cycle["n_candidates"], cycle["n_core"], cycle["n_new"])
        table.add_row(
            *map(str, counts),
            str(cycle["n_core"] - cycle["n_new"]),
            retention,
            *(f"{x:.3f}" for x in numbers),
        )
    return table


def _origin_table(matrix: list[list[int]]) -> Table:
    columns = (f"from cycle {index}" for index in range(len(matrix[0]) if matrix else 0))
    table = Table("core after", *columns, title="Origins", box=SIMPLE)
    for index, row in enumerate(matrix):
        table.add_row(f"cycle {index}", *map(str, row))
    return table


def _time_table(cycles: list[dict[str, Any]], seconds: dict[str, float]) -> Table:
    """Lay out the seconds of each phase; what is left of the whole goes to starting processes and queues."""
    columns = ("phase", *(f"cycle {cycle['index']}" for cycle in cycles), "all")
    harvested, cached = (
        sum(cycle[name] for cycle in cycles) for name in ("n_tokens_harvested", "n_tokens_cached")
    )
    caption = f"training tokens harvested: {harvested:,}; from the cache: {cached:,}"
    table = Table(*columns, title="Seconds", caption=caption, box=SIMPLE)
    phases = list(dict.fromkeys(phase for cycle in cycles for phase in cycle["phase_seconds"]))
    for phase in phases:
        row = [cycle["phase_seconds"].get(phase, 0.0) for cycle in cycles]
        table.add_row(phase, *(f"{value:.1f}" for value in (*row, sum(row))))
    told = sum(seconds[phase] for phase in phases) + seconds["stack"]
    blank = [""] * len(cycles)
    table.add_row("starting the stack", *blank, f"{seconds['stack']:.1f}")
    table.add_row("starting trainers, and between", *blank, f"{seconds['total'] - told:.1f}")
    return table


def _core_table(core: list[dict[str, Any]], *, job_id: str) -> Table:
    title = f"Strongest core latents of {job_id}"
    table = Table("latent", "from cycle", "times selected", "share", title=title, box=SIMPLE)
    for latent in core:
        name = str(latent["latent_id"]).removeprefix(f"{job_id}.")
        counts = (latent["origin_cycle"], latent["times_selected"])
        table.add_row(name, *map(str, counts), f"{latent['share']:.4f}")
    return table

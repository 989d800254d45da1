"""What does a distillation of several cycles cost beside its parts: one harvest, and every cycle's own work?

`cycles` is the time of `N_CYCLES` trainers one after the other, each a process of its own around the core of
the one before, from a cache that holds no activations: `against` is one harvest + all trainings without their
waits + all attributions with their ablation sample + all evaluations, as the trainers timed them in the same
run. The model's file is converted before, as it is once on a machine for all jobs: `cycles.converting`.
`cycles.wait` is the share of the training of later cycles that was spent waiting for activations.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dmsae.config import SPEC_VERSION, DistillationConfig
from dmsae.cycle import ENVIRONMENT
from dmsae.presets import PRESETS

N_CYCLES = 3
NAMES = ("cycles", "cycles.loading", "cycles.wait", "cycles.converting")


def cycle_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give the rows `cycles` and those below it, of the demo's distillation."""
    if not any(map(is_wanted, NAMES)):
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        converting_s = _timed(lambda: _convert(Path(folder)))
        found: list[dict[str, Any]] = []
        total_s = _timed(lambda: found.extend(_run_cycle(Path(folder), index) for index in range(N_CYCLES)))
    yield from filter(lambda row: is_wanted(row["name"]), rows(found, total_s, converting_s))


def rows(found: list[dict[str, Any]], total_s: float, converting_s: float) -> list[dict[str, Any]]:
    """Turn the metrics of the cycles, and the time of all together, into rows."""
    phases = [metrics["phase_seconds"] for metrics in found]
    waits = [metrics["activation_wait_s"] for metrics in found]
    training = [phase["training"] - wait for phase, wait in zip(phases, waits, strict=True)]
    measuring = [phase["attributing"] + phase["evaluating"] for phase in phases]
    parts_s = phases[0]["harvesting"] + waits[0] + sum(training) + sum(measuring)
    loading = [phase["loading"] for phase in phases]
    shares = [wait / phase["training"] for phase, wait in zip(phases[1:], waits[1:], strict=True)]
    return [
        _row("cycles", total_s, f"one harvest and the cycles' own work, {parts_s:.1f} s", total_s / parts_s),
        _row("cycles.loading", sum(loading), "cycles", sum(loading) / total_s, loading),
        _row("cycles.wait", sum(waits[1:]), "training of later cycles", max(shares), shares),
        _row("cycles.converting", converting_s, "cycles", converting_s / total_s),
    ]


def _convert(folder: Path) -> None:
    """Load the demo's model once, which leaves it converted."""
    from dmsae.models import load_model

    config = DistillationConfig.model_validate(PRESETS["demo"])
    load_model(config.model, activations=config.activations, device="cpu", cache_dir=folder / "cache")


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _run_cycle(folder: Path, index: int) -> dict[str, Any]:
    """Run one trainer and give its metrics."""
    spec = {
        "spec_version": SPEC_VERSION,
        "job_id": "dst_bench",
        "cycle_index": index,
        "config": {**PRESETS["demo"], "seed": 0},
    }
    (folder / f"{index}.json").write_text(json.dumps(spec))
    core = ["--core", str(folder / str(index - 1) / "core")] if index else []
    command = [sys.executable, "-m", "dmsae.cycle", str(folder / f"{index}.json"), str(folder / str(index))]
    command += ["--cache", str(folder / "cache"), *core]
    subprocess.run(command, stdout=sys.stderr, check=True, env={**os.environ, **ENVIRONMENT})
    metrics: dict[str, Any] = json.loads((folder / str(index) / "metrics.json").read_text())
    return metrics


def _row(
    name: str, seconds: float, against: str, ratio: float, spread: list[float] | None = None
) -> dict[str, Any]:
    each = [ratio] if spread is None else spread
    return {
        "name": name,
        "value": round(seconds, 2),
        "unit": "s",
        "against": against,
        "ratio": round(ratio, 4),
        "spread": [round(min(each), 4), round(max(each), 4)],
    }


if __name__ == "__main__":
    for row in cycle_rows(lambda _: True):
        sys.stdout.write(json.dumps(row) + "\n")

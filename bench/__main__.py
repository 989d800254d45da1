"""`make bench`: the demo's phases; a step, the harvest and cycles beside their floors and peers; memory;
how far scores agree with ablations; how fast the queue hands out cycles, latents are found, jobs are
taken while many streams are open and shown, and the list of jobs is on the screen.

One JSON object a line: name, value, unit, against, ratio, spread. The demo is run once, in a data folder of
its own; `ratio` is the share of the whole demo, `spread` the smallest and largest cycle, where a phase
belongs to cycles. Each other group of rows is explained in the module that makes it.
`ROWS=demo.training,memory,step,step_memory,gpu_step,harvest,cycles,scores,...` runs and prints some rows
only, or some groups.
"""

import json
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from bench.claims import claim_rows
from bench.cycles import cycle_rows
from bench.harvest import harvest_rows
from bench.lineage import lineage_rows
from bench.memory import memory_rows
from bench.pages import page_rows
from bench.reads import read_rows
from bench.scores import score_rows
from bench.step import gpu_step_rows, step_rows
from bench.step_memory import step_memory_rows
from bench.streams import stream_rows

GROUPS = (
    step_rows,
    gpu_step_rows,
    step_memory_rows,
    harvest_rows,
    cycle_rows,
    memory_rows,
    score_rows,
    claim_rows,
    lineage_rows,
    stream_rows,
    read_rows,
    page_rows,
)


def main(wanted: list[str]) -> int:
    """Print the rows that are wanted, all if none is named; the exit status is the demo's."""

    def is_wanted(name: str) -> bool:
        return not wanted or name in wanted or name.split(".")[0] in wanted

    if not wanted or any(name.split(".")[0] == "demo" for name in wanted):
        status, found = run_demo()
        if status:
            return status
        for row in found:
            if is_wanted(row["name"]):
                _print(row)
    for row in chain(*(rows_of(is_wanted) for rows_of in GROUPS)):
        _print(row)
    return 0


def run_demo() -> tuple[int, list[dict[str, Any]]]:
    """Run the demo; give its exit status and its rows."""
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        command = [sys.executable, "-m", "dmsae.cli", "demo", "--data", folder]
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if status:
            return status, []
        return 0, rows(json.loads((Path(folder) / "demo" / "report.json").read_text()))


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn the demo's report into rows."""
    total_s = report["seconds"]["total"]
    by_cycle = [cycle["phase_seconds"] for cycle in report["cycles"]]
    phases = [
        _row(f"demo.{phase}", [seconds[phase] for seconds in by_cycle], total_s) for phase in by_cycle[0]
    ]
    return [_row("demo.total", [total_s], total_s), *phases]


def _row(name: str, seconds: list[float], total_s: float) -> dict[str, Any]:
    value = sum(seconds)
    return {
        "name": name,
        "value": round(value, 2),
        "unit": "s",
        "against": "demo.total",
        "ratio": round(value / total_s, 4),
        "spread": [round(min(seconds), 2), round(max(seconds), 2)],
    }


def _print(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main([name for argument in sys.argv[1:] for name in argument.split(",") if name]))

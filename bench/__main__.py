"""`make bench`: run the demo once, in a data folder of its own, and print what each of its phases took.

One JSON object a line: name, value, unit, against, ratio, spread. `ratio` is the share of the whole demo;
`spread` is the smallest and largest cycle, where a phase belongs to cycles. `ROWS=demo.training,...` prints
some rows only.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(wanted: list[str]) -> int:
    """Run the demo and print its rows; the exit status is the demo's."""
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        command = [sys.executable, "-m", "dmsae.cli", "demo", "--data", folder]
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if status:
            return status
        report = json.loads((Path(folder) / "demo" / "report.json").read_text())
    for row in rows(report):
        if not wanted or row["name"] in wanted:
            sys.stdout.write(json.dumps(row) + "\n")
    return 0


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


if __name__ == "__main__":
    sys.exit(main([name for argument in sys.argv[1:] for name in argument.split(",") if name]))

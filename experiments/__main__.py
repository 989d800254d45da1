"""`make experiment`: run what is planned on the embedded stack, then write tables and figures of it.

`python -m experiments [small|full] [--report-only] [--write-docs]`. Work that was done is found again, so a
run that broke off goes on.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from dmsae.client.client import Client
from dmsae.local import daemon, paths
from experiments import figures, jobs, report, results
from experiments.plan import PLANS, Plan

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def main() -> int:
    """Run the experiment and give the exit status."""
    arguments = _arguments()
    plan, console = PLANS[arguments.size], Console()
    data = paths.open_data_folder(arguments.data)
    folder = ROOT / ".experiment" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "results.json"
    if not arguments.report_only:
        records.write_text(json.dumps(_run(plan, data, console), indent=2) + "\n")
    found = json.loads(records.read_text())
    target = DOCS if arguments.write_docs else folder
    file = target / f"experiment_{plan.name}.md"
    drawn = figures.draw(plan, found, target / file.stem)
    file.write_text(report.write(plan, found, drawn))
    console.print(f"Report: {file}", soft_wrap=True)
    return 0


def _run(plan: Plan, data: paths.DataFolder, console: Console) -> results.Record:
    running = daemon.running_url(data)
    stack = None
    if running is None:
        running, stack = daemon.start(data, port=None, n_workers=1, is_kept=False)
    try:
        with Client(running, os.environ.get("DMSAE_API_KEY")) as client:
            distilled, trained = jobs.run(client, plan, console.print)
            chains = jobs.wait_for_chains(client, plan, console.print)
            return results.collect(client, plan, distilled=distilled, trained=trained, chains=chains)
    finally:
        if stack is not None:
            stack.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("size", nargs="?", choices=sorted(PLANS), default="small")
    parser.add_argument("--data", type=Path, default=ROOT / ".dmsae", help="folder of the embedded stack")
    parser.add_argument("--report-only", action="store_true", help="from the results of an earlier run")
    parser.add_argument("--write-docs", action="store_true", help="write report and figures into docs/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""How far the demo is: a progress bar on a terminal, now and then a plain line elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dmsae.client.client import Answer

LINE_EVERY_S = 15.0
NUMBERS = (("loss", "loss", ".4g"), ("l0", "L0", ".1f"), ("explained_variance", "EV", ".3f"))


class Display(Protocol):
    """Something that can show where a job stands."""

    def show(self, job: Answer) -> None:
        """Show it."""


class Bar:
    """A progress bar over the steps of all cycles."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("waiting", total=1.0, numbers="")

    def show(self, job: Answer) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            completed=done_fraction(job),
            description=describe_place(job),
            numbers=describe_numbers(job),
        )


class Lines:
    """A line for each new phase, and every few seconds within one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._place = ""
        self._said_at = 0.0

    def show(self, job: Answer) -> None:
        """Say where it stands, if that is news."""
        place, now = describe_place(job), time.monotonic()
        if place != self._place or now - self._said_at > LINE_EVERY_S:
            self._place, self._said_at = place, now
            self._console.print(f"{place}  {describe_numbers(job)}".rstrip(), highlight=False, soft_wrap=True)


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """Give what suits this console."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console) as progress:
        yield Bar(progress)


def describe_place(job: Answer) -> str:
    """Say in which cycle and phase a job is."""
    progress = job["progress"]
    if progress["cycle_index"] is None:
        return str(job["state"])
    phase = progress["phase"] or job["state"]
    return f"cycle {progress['cycle_index'] + 1} of {progress['n_cycles']}: {phase}"


def describe_numbers(job: Answer) -> str:
    """Give tokens, loss, L0, explained variance and time left, as far as they are known."""
    progress = job["progress"]
    latest = progress["latest"] or {}
    shown = []
    if latest.get("n_tokens") is not None:
        total = latest.get("n_tokens_total")
        shown.append(f"tokens {latest['n_tokens']:,}" + (f"/{total:,}" if total else ""))
    for name, label, form in NUMBERS:
        if latest.get(name) is not None:
            shown.append(f"{label} {latest[name]:{form}}")
    if progress["time_left_s"] is not None:
        minutes, seconds = divmod(round(progress["time_left_s"]), 60)
        shown.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(shown)


def done_fraction(job: Answer) -> float:
    """Give the share of all cycles' steps that are done."""
    progress = job["progress"]
    latest = progress["latest"] or {}
    within = float(latest["step"]) / float(latest["n_steps"]) if latest.get("n_steps") else 0.0
    return min(1.0, (int(progress["n_cycles_done"]) + within) / max(1, int(progress["n_cycles"])))

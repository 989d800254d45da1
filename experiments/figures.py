"""How does the experiment look? Five figures as SVG, from the collected records alone."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plan import ARMS, Plan
from experiments.results import FIGURES, Estimate, Record, of_arm

WIDTH_IN, HEIGHT_IN = 7.0, 3.6


def draw(plan: Plan, found: Record, folder: Path) -> list[Path]:
    """Draw all figures into a folder and give their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with mpl.rc_context({"svg.hashsalt": "dmsae", "font.size": 9}):
        files += [
            _save(_compare(plan, found["trainings"], figure), folder / f"{figure}.svg")
            for figure in ("ce_first", "ev_first", "retention")
        ]
        files.append(_save(_origins(found["distillations"]), folder / "origins.svg"))
        files.append(_save(_densities(found["distillations"]), folder / "density_against_score.svg"))
    return files


def _compare(plan: Plan, records: list[Record], figure: str) -> Figure:
    """Draw one figure of all arms with error bars over seeds, a marker for each k and core sparsity."""
    canvas, axes = _canvas(FIGURES[figure])
    shifts = [(sparsity, k) for sparsity in plan.core_sparsities for k in plan.ks]
    for at, (core_sparsity, k) in enumerate(shifts):
        places, means, errors = [], [], []
        for place, arm in enumerate(plan.arms):
            values = of_arm(records, arm=arm, core_sparsity=core_sparsity, k=k)
            estimate = Estimate.of(record[figure] for record in values)
            if estimate is not None:
                places.append(place + 0.6 * ((at + 0.5) / len(shifts) - 0.5))
                means.append(estimate.mean)
                errors.append(estimate.se or 0.0)
        label = f"{core_sparsity}, k = {k}"
        axes.errorbar(means, places, xerr=errors, fmt="o", markersize=4, capsize=2, label=label)
    axes.set_yticks(range(len(plan.arms)), [ARMS[arm] for arm in plan.arms])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    return canvas


def _origins(records: list[Record]) -> Figure:
    """Stack how many latents of each cycle's core come from each cycle, seeds averaged."""
    canvas, axes = _canvas("core latents by the cycle that they come from")
    n_cycles = min(len(record["origins"]) for record in records)
    below = [0.0] * n_cycles
    for origin in range(n_cycles):
        heights = [
            sum(_entry(record["origins"], cycle, origin) for record in records) / len(records)
            for cycle in range(n_cycles)
        ]
        axes.bar(range(n_cycles), heights, bottom=below, label=f"from cycle {origin}")
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xticks(range(n_cycles), [f"cycle {cycle}" for cycle in range(n_cycles)])
    axes.legend(frameon=False)
    return canvas


def _entry(matrix: list[list[int]], cycle: int, origin: int) -> int:
    return matrix[cycle][origin] if origin < len(matrix[cycle]) else 0


def _densities(records: list[Record]) -> Figure:
    canvas, axes = _canvas("score of each core latent (nats a token) against its density")
    for record in records:
        points = [(latent["density"], latent["score"]) for latent in record["core"]]
        label = f"{record['core_sparsity']}, seed {record['seed']}"
        axes.plot(*zip(*points, strict=True), ".", markersize=4, alpha=0.6, label=label)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="score")
    axes.legend(frameon=False)
    return canvas


def _canvas(title: str) -> tuple[Figure, Axes]:
    canvas = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(title, fontsize=10)
    return canvas, axes


def _save(canvas: Figure, path: Path) -> Path:
    metadata: dict[str, Any] = {"Date": None}
    canvas.savefig(path, metadata=metadata)
    return path

"""What the API answers about the steps of a training, field by field."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Self

from api.schemas import Answer, example_of
from dmsae.service.step_metrics import Series

STEP_METRICS: dict[str, Any] = {
    "items": [
        {
            "cycle_index": 0,
            "n_recorded": 1200,
            "columns": {
                "step": [600, 1200],
                "n_tokens": [307200, 614400],
                "loss": [0.41, 0.33],
                "l0": [31.8, 32.0],
            },
        }
    ]
}
STEP_METRICS_CSV = "cycle_index,step,n_tokens,loss,l0\n0,600,307200,0.41,31.8\n0,1200,614400,0.33,32.0\n"


class SeriesOut(Answer):
    """The points of one cycle, column by column, in the order of steps."""

    cycle_index: int
    n_recorded: int
    """Points that there are. Where fewer are shown each stands for a run of them: at its last step, every
    figure the mean of those that are known."""
    columns: dict[str, list[int | float | None]]
    """`step` and `n_tokens`, then what was asked for; all of one length."""


class StepMetrics(Answer):
    """How training went, cycle by cycle."""

    model_config = example_of(STEP_METRICS)

    items: list[SeriesOut]

    @classmethod
    def of(cls, found: Sequence[Series]) -> Self:
        """Show series."""
        return cls(items=[SeriesOut.model_validate(series) for series in found])


def as_csv(found: Sequence[Series], columns: Sequence[str]) -> str:
    """Write series as one table, a point a row; what is not known is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["cycle_index", "step", "n_tokens", *columns])
    for series in found:
        for row in zip(*series.columns.values(), strict=True):
            table.writerow([series.cycle_index, *row])
    return text.getvalue()

"""What is asked and answered about figures: their kinds, forms and looks, and a comparison field by field."""

from typing import Annotated, Any, Literal, Self

from fastapi import Path, Query

from api.schemas import Answer, example_of
from dmsae.figures.comparison import CompareData, Over
from dmsae.figures.data import Form, Theme
from dmsae.service.figure_data import JobFigure

JOB_LIST = r"^[A-Za-z0-9_-]{1,64}(,[A-Za-z0-9_-]{1,64}){0,99}$"

FigureOf = Annotated[
    JobFigure,
    Path(
        description="origins: each cycle's core by the cycle that its latents come from. flow: latents kept, "
        "added and dropped by each cycle. curves: loss, explained variance, L0 and dead latents by step. "
        "density: density against score of the last core."
    ),
]
FormOf = Annotated[Form, Path(description="svg or png: the figure; csv: its data.")]
ThemeOf = Annotated[Theme, Query(description="Of the page or paper that it is for; csv has none.")]
JobsOf = Annotated[
    str,
    Query(
        pattern=JOB_LIST,
        max_length=6500,
        description="Ids of jobs, or of groups in the place of their jobs, with commas between them: at most "
        "100. Finished trainings without a core that are as wide as these are put beside them.",
    ),
]
OverOf = Annotated[
    Over,
    Query(
        description="k: what stands at one k is the mean over seeds. seed: each seed, then their mean. Bars: "
        "sample standard deviation."
    ),
]

COMPARISON: dict[str, Any] = {
    "over": "k",
    "error_bars": "sample standard deviation over the jobs of a mean; null of a single job",
    "jobs": [
        {
            "job_id": "job_01998a7e3b0c7d31",
            "arm": "distilled core",
            "setup": "",
            "k": 32,
            "seed": 1000,
            "values": {
                "loss_recovered_first": 0.71,
                "explained_variance_first": 0.52,
                "ce_increase_first": 2.3,
                "loss_recovered": 0.93,
                "explained_variance": 0.81,
                "ce_increase": 0.55,
            },
            "is_weak_control": None,
            "is_named": True,
        }
    ],
    "estimates": [
        {
            "measure": "loss_recovered",
            "arm": "distilled core",
            "setup": "",
            "k": 32,
            "at": 32,
            "n": 1,
            "mean": 0.93,
            "sd": None,
            "jobs": ["job_01998a7e3b0c7d31"],
            "values": [0.93],
        }
    ],
    "missing_controls": [
        {
            "arm": "distilled core",
            "setup": "",
            "k": 32,
            "n_matched": 99,
            "sentence": "No finished training without a core is as wide (n_matched = 99) at k = 32 with "
            "otherwise these settings, so nothing tells what is owed to width.",
        }
    ],
    "left_out": [],
    "n_controls_left": 0,
}
CSV_EXAMPLE = "cycle_index,origin_job_id,origin_cycle,n_latents\r\n0,job_01998a7e3b0c7d31,0,99\r\n"
FIGURE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The figure, or its data.",
        "headers": {"ETag": {"description": "Of this very picture.", "schema": {"type": "string"}}},
        "content": {
            "image/svg+xml": {"schema": {"type": "string"}, "example": "<svg/>"},
            "image/png": {"schema": {"type": "string", "format": "binary"}, "example": "PNG"},
            "text/csv": {"schema": {"type": "string"}, "example": CSV_EXAMPLE},
        },
    },
    304: {"description": "Unchanged since `If-None-Match`."},
}


class ComparedOut(Answer):
    """One job of a comparison, by its last cycle."""

    job_id: str
    arm: str
    """What its SAE is built around."""
    setup: str
    """Settings in which it differs from others that are compared; empty where there are none."""
    k: int
    seed: int
    values: dict[str, float | None]
    """Loss recovered (at kept positions), explained variance and CE increase in nats: with `_first` of the
    most nested prefix, else of the whole SAE."""
    is_weak_control: bool | None
    """Whether more than half of a control's core is the core that it is to be compared with."""
    is_named: bool
    """False for a width-matched control that was found and put beside those that were named."""


class EstimateOut(Answer):
    """A mean over jobs that differ in nothing but their seed."""

    measure: str
    arm: str
    setup: str
    k: int
    at: int | Literal["all"]
    """The k or the seed; `all`: over all seeds."""
    n: int
    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); null of a single job."""
    jobs: list[str]
    values: list[float]
    """Of these jobs."""


class MissingControlOut(Answer):
    """A width-matched SAE without a core, without which nothing tells what is owed to width."""

    arm: str
    """To which it would be the control."""
    setup: str
    k: int
    n_matched: int
    sentence: str


class ComparisonOut(Answer):
    """Several jobs, with their controls."""

    model_config = example_of(COMPARISON)

    over: Over
    error_bars: str
    """How `sd` is computed."""
    jobs: list[ComparedOut]
    estimates: list[EstimateOut]
    missing_controls: list[MissingControlOut]
    left_out: list[str]
    """Jobs that have not succeeded (yet)."""
    n_controls_left: int
    """Width-matched controls beyond the 500 oldest, which are all that is put beside them."""

    @classmethod
    def of(cls, data: CompareData) -> Self:
        """Show a comparison."""
        jobs = [{**vars(job), **job.series._asdict()} for job in data.jobs]
        estimates = [{**found._asdict(), **found.series._asdict()} for found in data.estimates()]
        missing = [
            {**gap._asdict(), **gap.series._asdict(), "sentence": gap.sentence} for gap in data.missing
        ]
        return cls(
            over=data.over,
            error_bars=COMPARISON["error_bars"],
            jobs=[ComparedOut.model_validate(job) for job in jobs],
            estimates=[EstimateOut.model_validate(found) for found in estimates],
            missing_controls=[MissingControlOut.model_validate(gap) for gap in missing],
            left_out=list(data.left_out),
            n_controls_left=data.n_controls_left,
        )

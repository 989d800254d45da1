"""Figures: what they show is what they are given, in both themes, whatever a job is called."""

import asyncio
import csv
import io
import math
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from api.drawings import MOST_WAITING, Drawings
from dmsae.errors import Unavailable
from dmsae.figures.comparison import MEASURES, Compared, CompareData, Missing, Series
from dmsae.figures.data import (
    CURVES,
    Curve,
    CurvesData,
    DensityData,
    FlowData,
    Origin,
    OriginsData,
    Point,
    Stage,
    Subject,
)
from dmsae.figures.drawing import draw
from dmsae.figures.tables import FigureData, as_csv
from dmsae.service.drawing import writable_folder

JOB = "job_a"
OWN = [Origin(JOB, cycle) for cycle in range(3)]
OTHER = Origin("job_b", 1)
SUBJECT = Subject(JOB, "first try")
ORIGINS = OriginsData(SUBJECT, [0, 1, 2], [*OWN, OTHER], [[30, 0, 0, 5], [20, 10, 0, 4], [20, 0, 7, 4]])
FLOW = FlowData(
    SUBJECT,
    [OTHER, *OWN],
    [
        Stage(None, {}, {OTHER: 6}),
        Stage(0, {OTHER: 5}, {OWN[0]: 30}),
        Stage(1, {OTHER: 4, OWN[0]: 20}, {OWN[1]: 10}),
    ],
)
CURVE_VALUES = {
    "loss": [9.0, 0.2],
    "explained_variance": [None, 0.5],
    "l0": [32.0, 31.5],
    "dead_fraction": [0.0, 0.1],
}
CURVES_DATA = CurvesData(
    SUBJECT,
    [
        Curve(0, 700, [1, 2], [64, 128], CURVE_VALUES),
        Curve(1, 1, [1], [64], {name: [1.0] for name in CURVES}),
    ],
)
DENSITY = DensityData(
    SUBJECT,
    2,
    4,
    [
        Point("job_a.0.3", 0, OWN[0], 3, 0.01, 0.5),
        Point("job_b.1.9", 1, OTHER, 1, 0.001, -0.02),
        Point("job_a.2.1", 2, OWN[2], 1, 0.0, 0.0),
        Point("job_a.2.2", 3, OWN[2], 1, None, 0.3),
    ],
)


def compared(arm: str, job_id: str, value: float | None, *, k: int = 32, seed: int = 0) -> Compared:
    values = dict.fromkeys(MEASURES, value)
    return Compared(job_id, Series(arm, ""), k, seed, values, is_weak_control=None, is_named=True)


COMPARE = CompareData(
    "k",
    [
        compared("distilled core", "a", 0.5, seed=0),
        compared("distilled core", "b", 0.7, seed=1),
        compared("distilled core", "c", 0.9, k=64),
        compared("no core, as wide", "d", 0.4),
        compared("no core, as wide", "e", None),
    ],
    [Missing(Series("distilled core", ""), 64, 99)],
    ["f"],
)
ALL: dict[str, FigureData] = {
    "origins": ORIGINS,
    "flow": FLOW,
    "curves": CURVES_DATA,
    "density": DENSITY,
    "compare": COMPARE,
}


drawn_once: dict[str, bytes] = {}


def svg_of(name: str) -> bytes:
    """Give the SVG of one of `ALL`, drawn once for all tests."""
    if name not in drawn_once:
        drawn_once[name] = draw(ALL[name], "svg")
    return drawn_once[name]


def ids_of(name: str, beginning: str) -> list[str]:
    drawn = ElementTree.fromstring(svg_of(name))  # noqa: S314 - our own
    return [found for element in drawn.iter() if (found := element.get("id", "")).startswith(beginning)]


def rows_of(data: FigureData) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(data).decode())))


def test_origins_have_a_bar_for_each_count_that_is_not_zero() -> None:
    assert sorted(ids_of("origins", "bar-")) == [
        "bar-0-job_a-0", "bar-0-job_b-1",
        "bar-1-job_a-0", "bar-1-job_a-1", "bar-1-job_b-1",
        "bar-2-job_a-0", "bar-2-job_a-2", "bar-2-job_b-1",
    ]  # fmt: skip
    counts = [int(row["n_latents"]) for row in rows_of(ORIGINS)]
    assert counts == [30, 0, 0, 5, 20, 10, 0, 4, 20, 0, 7, 4]
    assert rows_of(ORIGINS)[3]["origin_job_id"] == "job_b"


def test_the_flow_counts_what_was_given_kept_new_and_dropped() -> None:
    told = [
        (row["cycle_index"], row["origin_job_id"], row["fate"], int(row["n_latents"]))
        for row in rows_of(FLOW)
    ]
    assert told == [
        ("", "job_b", "given", 6),
        ("0", "job_a", "new", 30), ("0", "job_b", "kept", 5), ("0", "job_b", "dropped", 1),
        ("1", "job_a", "new", 10), ("1", "job_b", "kept", 4), ("1", "job_a", "kept", 20),
        ("1", "job_b", "dropped", 1), ("1", "job_a", "dropped", 10),
    ]  # fmt: skip
    assert len(ids_of("flow", "core-")) == 1 + 2 + 3
    assert sorted(ids_of("flow", "dropped-")) == [
        "dropped-0-job_b-1",
        "dropped-1-job_a-0",
        "dropped-1-job_b-1",
    ]


def test_curves_have_a_line_for_each_cycle_in_each_panel() -> None:
    for name in CURVES:
        assert ids_of("curves", f"{name}-") == [f"{name}-0", f"{name}-1"]
    first, *_, last = rows_of(CURVES_DATA)
    assert first == {
        "cycle_index": "0", "n_recorded": "700", "step": "1", "n_tokens": "64", "loss": "9.0",
        "explained_variance": "", "l0": "32.0", "dead_fraction": "0.0",
    }  # fmt: skip
    assert last["cycle_index"] == "1"


def test_density_shows_what_a_logarithmic_axis_can_and_the_csv_all_of_it() -> None:
    assert sorted(ids_of("density", "origin-")) == ["origin-job_a-0", "origin-job_b-1"]
    assert [row["latent_id"] for row in rows_of(DENSITY)] == [
        "job_a.0.3",
        "job_b.1.9",
        "job_a.2.1",
        "job_a.2.2",
    ]
    assert [row["density"] for row in rows_of(DENSITY)] == ["0.01", "0.001", "0.0", ""]


def test_a_comparison_gives_means_with_sample_deviations_and_names_the_missing_control() -> None:
    rows = [row for row in rows_of(COMPARE) if row["measure"] in ("loss_recovered", "")]
    both, single, control, gap = rows
    assert (both["arm"], both["at"], both["n"], both["jobs"]) == ("distilled core", "32", "2", "a b")
    assert float(both["mean"]) == pytest.approx(0.6)
    assert float(both["sd"]) == pytest.approx(math.sqrt(0.02))  # ((0.1)^2 + (0.1)^2) / (2 - 1)
    assert (single["at"], single["n"], single["sd"]) == ("64", "1", "")
    assert (control["arm"], control["n"], control["jobs"]) == ("no core, as wide", "1", "d")
    assert (gap["n"], gap["mean"], gap["k"]) == ("0", "", "64")
    assert "n_matched = 99" in gap["note"]
    assert sorted(ids_of("compare", "loss_recovered-")) == ["loss_recovered-0", "loss_recovered-1"]


def test_over_seeds_each_seed_stands_by_itself_and_all_of_them_as_their_mean() -> None:
    over_seeds = CompareData("seed", COMPARE.jobs, [], [])
    found = [estimate for estimate in over_seeds.estimates() if estimate.measure == "explained_variance"]
    told = [(estimate.k, estimate.at, estimate.n, round(estimate.mean, 9)) for estimate in found]
    assert told == [
        (32, 0, 1, 0.5), (32, 1, 1, 0.7), (32, "all", 2, 0.6), (64, 0, 1, 0.9), (64, "all", 1, 0.9),
        (32, 0, 1, 0.4), (32, "all", 1, 0.4),
    ]  # fmt: skip
    assert draw(over_seeds, "svg")


@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_the_same_twice_in_svg_and_a_picture_in_both_themes(name: str) -> None:
    data = ALL[name]
    assert draw(data, "svg") == svg_of(name)
    grounds = []
    for theme in ("light", "dark"):
        with Image.open(io.BytesIO(draw(data, "png", theme))) as picture:
            assert picture.width >= 1400
            grounds.append(picture.convert("L").getpixel((2, 2)))
    assert grounds[0] > 200 > 60 > grounds[1]


HOSTILE = (
    r"<script>alert(1)</script> $\frac{a}$ & --> \x",
    "$\\undefined{",
    "a\u202eb\x00\x1b[31m\ud800\uffff",
    "\u4e2d\u6587 \N{GRINNING FACE}",
    "x" * 5000,
)


def of_a_job(name: str) -> FigureData:
    return OriginsData(Subject(JOB, name), [0], OWN[:1], [[3]])


def of_a_setting(name: str) -> FigureData:
    values = dict.fromkeys(MEASURES, 0.5)
    return CompareData("k", [Compared("a", Series("distilled core", name), 1, 1, values, None, True)], [], [])


@pytest.mark.parametrize(
    ("named", "hostile"),
    [*((of_a_job, name) for name in HOSTILE), (of_a_setting, HOSTILE[0])],
    ids=range(len(HOSTILE) + 1),
)
def test_no_name_is_markup_or_mathematics(named: Callable[[str], FigureData], hostile: str) -> None:
    drawn = draw(named(hostile), "svg").decode()
    names = {re.sub("{.*}", "", element.tag) for element in ElementTree.fromstring(drawn).iter()}  # noqa: S314
    assert not names & {"script", "image", "foreignObject", "a", "text"}
    assert "<script" not in drawn
    assert 'href="http' not in drawn
    assert len(drawn) < 200_000


def test_one_figure_is_drawn_at_a_time_and_once_for_all_who_ask_for_it() -> None:
    names: list[str] = []
    running = threading.Semaphore(1)

    def work(name: str) -> bytes:
        assert running.acquire(blocking=False)
        time.sleep(0.01)
        names.append(name)
        running.release()
        return name.encode()

    async def ask() -> list[bytes | BaseException]:
        drawings = Drawings()
        asked = [drawings.draw(name, partial(work, name)) for name in "abab"]
        many = [drawings.draw(f"c{i}", partial(work, f"c{i}")) for i in range(MOST_WAITING)]
        return await asyncio.gather(*asked, *many, return_exceptions=True)

    answers = asyncio.run(ask())
    assert answers[:4] == [b"a", b"b", b"a", b"b"]
    assert (names.count("a"), names.count("b")) == (1, 1)
    assert [type(answer) for answer in answers[-3:]] == [Unavailable] * 3


def test_fonts_are_listed_elsewhere_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = writable_folder(tmp_path / "file" / "matplotlib")
    assert folder.is_dir()
    folder.rmdir()
    assert writable_folder(tmp_path / "cache" / "matplotlib") == tmp_path / "cache" / "matplotlib"

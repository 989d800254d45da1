"""Figures over HTTP: of planted rows, counted by hand; refused where there is nothing; known by an ETag."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import httpx
import pytest
from PIL import Image

from dmsae.service import comparisons
from dmsae.service.claims import Claim
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, MetricPoint
from tests.conftest import RunningServices
from tests.finished import claim_of, finish_cycles
from tests.planting import make_lineage, plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import given_entry, record, submit_distillations, submit_trainings, training_lineage

NAME = r"<script>alert(1)</script> $\frac{a}"


class Site(NamedTuple):
    """What all tests share."""

    api: httpx.Client
    database: Database
    done: str
    """A distillation of three cycles, as `tests/finished.py` leaves it."""
    trained: dict[str, str]
    """Trainings around its last core, or none: distilled, again, random, matched, unmatched."""
    fresh: str
    """A distillation of which nothing has run."""

    def figure(self, job_id: str, figure: str, status: int = 200, **headers: str) -> httpx.Response:
        answer = self.api.get(f"/jobs/{job_id}/figures/{figure}", headers=headers)
        assert answer.status_code == status, answer.text[:500]
        return answer

    def default_lr(self) -> float:
        lr: float = self.api.get(f"/jobs/{self.done}").json()["config"]["training"]["lr"]
        return lr

    def compare(self, *names: str, form: str = "", status: int = 200, **query: str) -> httpx.Response:
        jobs = ",".join(self.trained.get(name, name) for name in names)
        answer = self.api.get(f"/figures/compare{form}", params={"jobs": jobs, **query})
        assert answer.status_code == status, answer.text[:500]
        return answer


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as url:
        database = Database(url, wake_up=lambda _: None)
        with served(Settings(**{**fields, "database_url": url})) as api:
            worker_id = database.run(lambda session: plant_worker(session, "cpu"))
            (source,) = submit_distillations(database, name=NAME)
            finish_cycles(database, worker_id=worker_id)
            done = source.job.id
            plant_steps(database, done)
            trained = train_all(database, done, worker_id)
            (fresh,) = submit_distillations(database)
            yield Site(api, database, done, trained, fresh.job.id)
        database.dispose()


def plant_steps(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        for cycle in session.query(Cycle).where(Cycle.job_id == job_id, Cycle.index < 2):
            for step in range(1, 1001 if cycle.index else 3):
                values = {"loss": 10.0 / step, "l0": 32.0, "explained_variance": None, "dead_fraction": 0.5}
                session.add(MetricPoint(cycle_id=cycle.id, step=step, fence=1, n_tokens=64 * step, **values))


def train_all(database: Database, source: str, worker_id: str) -> dict[str, str]:
    """Leave trainings of two latents given, whose loss recovered is told by their place."""
    ref = {"job_id": source}
    around, none = {"kind": "selected", "cycle": ref}, {"kind": "none", "width_of": ref}
    low = {"training": {"lr": 0.001}}
    bodies: dict[str, dict[str, Any]] = {
        "distilled": {"core": around, "seed": 1},
        "again": {"core": around, "seed": 2},
        "at_64": {"core": around, "seed": 1, "sae": {"k": 64}},
        "random": {"core": {**around, "kind": "random_directions"}, "seed": 1},
        "matched": {"core": none, "seed": 1},
        "other_lr": {"core": none, "seed": 1, "training": {"lr": 0.01}},
        "low": {"core": around, "seed": 1, **low},
        "low_64": {"core": around, "seed": 1, "sae": {"k": 64}, **low},
        "low_matched": {"core": none, "seed": 1, **low},
        "low_matched_too": {"core": none, "seed": 2, **low},
        "low_64_matched": {"core": none, "seed": 1, "sae": {"k": 64}, **low},
    }
    trained = {}
    for place, (name, body) in enumerate(bodies.items()):
        (training,) = submit_trainings(database, **body)
        claim = claim_of(database, worker_id)
        trained[name] = training.job.id
        first = training.job.config["sae"]["block_widths"][0]
        whole, nested = 0.5 + place / 10, 0.2 + place / 10
        metrics = {
            "prefix_widths": [2 + first], "lr_kept": whole, "lr_kept_per_prefix": [nested, whole],
            "explained_variance": whole, "explained_variance_per_prefix": [nested, whole],
            "ce_increase": 1 - whole, "ce_increase_per_prefix": [1 - nested, 1 - whole],
        }  # fmt: skip
        record(database, claim, lineage_of(claim, body["core"]["kind"], source), **metrics)
    return trained


def lineage_of(claim: Claim, kind: str, source: str) -> dict[str, Any]:
    """Of two latents given the first is kept; what was given none selects one."""
    if kind == "none":
        return make_lineage(claim, [], kept=[], new=[7])
    names = [f"{source}.0.3", f"{source}.1.20"]
    if kind == "random_directions":
        names = [f"{claim.job_id}.0.0", f"{claim.job_id}.0.1"]
        given = [given_entry(place, name, origin_kind=kind) for place, name in enumerate(names)]
    else:
        given = [given_entry(place, name, parent_core_index=place) for place, name in enumerate(names)]
    return training_lineage(claim, given, kept=[0], new=[7], kind=kind)


def told(answer: httpx.Response, *names: str) -> list[tuple[str, ...]]:
    """Give the columns of a CSV."""
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return [tuple(row[name] for name in names) for row in csv.DictReader(io.StringIO(answer.text))]


def test_origins_and_flow_count_what_each_cycle_had_kept_and_dropped(site: Site) -> None:
    counts = told(site.figure(site.done, "origins.csv"), "cycle_index", "origin_cycle", "n_latents")
    assert ["".join(count) for count in counts] == [
        "003", "010", "020", "102", "111", "120", "201", "211", "220",
    ]  # fmt: skip
    flow = told(site.figure(site.done, "flow.csv"), "cycle_index", "origin_cycle", "fate", "n_latents")
    assert flow == [
        ("0", "0", "new", "3"),
        ("1", "1", "new", "1"), ("1", "0", "kept", "2"), ("1", "0", "dropped", "1"),
        ("2", "0", "kept", "1"), ("2", "1", "kept", "1"), ("2", "0", "dropped", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["distilled", "random"])
def test_the_flow_of_a_training_begins_with_the_core_that_it_was_given(site: Site, name: str) -> None:
    of = site.trained[name] if name == "random" else site.done
    rows = told(
        site.figure(site.trained[name], "flow.csv"), "fate", "cycle_index", "origin_job_id", "n_latents"
    )
    given = [row for row in rows if row[0] == "given"]
    assert {row[1:3] for row in given} == {("", of)}
    assert sum(int(row[3]) for row in given) == 2
    assert {row for row in rows if row[0] != "given"} == {
        ("kept", "0", of, "1"),
        ("dropped", "0", of, "1"),
        ("new", "0", site.trained[name], "1"),
    }


def test_curves_of_many_steps_are_taken_together_and_density_lists_the_last_core(site: Site) -> None:
    points = told(site.figure(site.done, "curves.csv"), "cycle_index", "step", "loss", "explained_variance")
    assert points[:2] == [("0", "1", "10.0", ""), ("0", "2", "5.0", "")]
    assert len(points) == 2 + 500
    assert points[2] == ("1", "2", "7.5", "")  # the mean of 10 and 5, at the last step of both
    latents = told(site.figure(site.done, "density.csv"), "cycle_index", "latent_id", "density", "score")
    assert latents == [("2", f"{site.done}.0.3", "0.1", "1.0"), ("2", f"{site.done}.1.20", "0.1", "0.5")]


@pytest.mark.parametrize("figure", ["origins", "flow", "curves", "density"])
def test_a_figure_is_an_svg_and_a_png_and_runs_nothing(site: Site, figure: str) -> None:
    drawn = site.figure(site.done, f"{figure}.svg")
    assert drawn.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in drawn.headers["content-security-policy"]
    assert ElementTree.fromstring(drawn.content).tag.endswith("}svg")  # noqa: S314 - our own
    assert "<script" not in drawn.text
    assert drawn.headers["content-encoding"] == "gzip"
    plain = site.figure(site.done, f"{figure}.svg", **{"Accept-Encoding": "gzip;q=0"})
    assert ("content-encoding" not in plain.headers, plain.content) == (True, drawn.content)
    picture = site.figure(site.done, f"{figure}.png?theme=dark")
    assert picture.headers["content-disposition"] == f'inline; filename="{site.done}-{figure}.png"'
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.width > 1000) == ("PNG", True)


def test_a_figure_is_sent_again_only_when_its_job_has_changed(site: Site) -> None:
    path = "origins.svg"
    tag = site.figure(site.done, path).headers["etag"]
    assert site.figure(site.done, path, 304, **{"If-None-Match": tag}).content == b""
    assert (
        site.figure(site.done, path, 304, **{"If-None-Match": f'"x", {tag.removeprefix("W/")}'}).headers[
            "etag"
        ]
        == tag
    )
    site.api.patch(f"/jobs/{site.done}", json={"notes": f"seen as {tag}"})
    assert site.figure(site.done, path, 200, **{"If-None-Match": tag}).headers["etag"] != tag
    compared = site.compare("distilled", form=".csv")
    again = site.api.get(compared.url, headers={"If-None-Match": compared.headers["etag"]})
    assert again.status_code == 304


def test_what_cannot_be_drawn_is_refused_plainly(site: Site) -> None:
    for figure in ("origins.svg", "flow.png", "curves.csv", "density.svg"):
        assert site.figure(site.fresh, figure, 404).json()["code"] == "nothing_to_draw"
        assert site.figure("job_none", figure, 404).json()["code"] == "not_found"
    for path in ("origins.pdf", "origin.svg", "origins"):
        assert site.figure(site.done, path, 404).json()["code"] == "not_found"
    refusal = site.figure(site.done, "origins.svg?theme=blue", 422).json()
    assert refusal["errors"][0]["param"] == "theme"
    assert site.compare(site.fresh, status=404).json()["code"] == "nothing_to_draw"
    assert site.compare(site.done, status=404).json()["code"] == "nothing_to_draw"  # it has no metrics
    assert site.compare("distilled", "job_none", status=404).json()["code"] == "not_found"
    for jobs in ("", ",", "a,,b", "a b", ",".join("a" * 101)):
        answer = site.api.get("/figures/compare.csv", params={"jobs": jobs})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_comparison_puts_the_width_matched_control_beside_what_is_named(site: Site) -> None:
    found = site.compare("distilled", "again", "random", site.fresh).json()
    jobs = {job["job_id"]: job for job in found["jobs"]}
    names = {job_id: name for name, job_id in site.trained.items()}
    assert {names[job_id]: (job["arm"], job["is_named"]) for job_id, job in jobs.items()} == {
        "distilled": ("distilled core", True),
        "again": ("distilled core", True),
        "random": ("random directions", True),
        "matched": ("no core, as wide", False),
    }
    assert jobs[site.trained["random"]]["values"]["loss_recovered_first"] == pytest.approx(0.5)
    distilled, *_ = [each for each in found["estimates"] if each["measure"] == "explained_variance"]
    assert (distilled["n"], distilled["mean"]) == (2, pytest.approx(0.55))
    assert distilled["sd"] == pytest.approx(0.1 / 2**0.5)
    assert (found["missing_controls"], found["left_out"]) == ([], [site.fresh])


def test_a_comparison_says_where_no_control_of_the_same_width_is_there(site: Site) -> None:
    (gap,) = site.compare("distilled", "at_64").json()["missing_controls"]
    assert (gap["k"], gap["n_matched"], gap["arm"]) == (64, 2, "distilled core")
    rows = told(site.compare("distilled", "at_64", form=".csv"), "k", "n", "note")
    assert rows[-1] == ("64", "0", gap["sentence"])
    assert site.compare("distilled", "at_64", form=".png").content.startswith(b"\x89PNG")


def test_controls_beyond_the_bound_are_counted_and_each_need_keeps_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def controls() -> set[str]:
        return {job["job_id"] for job in site.compare("low", "low_64").json()["jobs"] if not job["is_named"]}

    assert controls() == {site.trained[name] for name in ("low_matched", "low_matched_too", "low_64_matched")}
    monkeypatch.setattr(comparisons, "MOST_JOBS", 2)
    assert controls() == {site.trained["low_matched"], site.trained["low_64_matched"]}
    assert site.compare("low", "low_64").json()["n_controls_left"] == 1
    assert told(site.compare("low", "low_64", form=".csv"), "note")[-1][0].startswith("1 more width-matched")


def test_jobs_of_other_settings_are_never_averaged_and_say_in_what_they_differ(site: Site) -> None:
    found = site.compare("matched", "other_lr", over="seed").json()
    setups = {job["setup"] for job in found["jobs"]}
    assert setups == {"training.lr = 0.01", f"training.lr = {site.default_lr()}"}
    assert {estimate["n"] for estimate in found["estimates"]} == {1}


def test_the_command_writes_what_the_service_draws(site: Site, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "dmsae.cli", "figure", *arguments, "--url", str(site.api.base_url)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60)

    told_file = run("origins", site.done, "-o", str(tmp_path / "a.svg"), "--json").stdout
    assert json.loads(told_file)["path"] == str(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == site.figure(site.done, "origins.svg").content
    table = run("flow", site.done, "--format", "csv", "-o", "-").stdout
    assert table == site.figure(site.done, "flow.csv").content
    ids = [site.trained[name] for name in ("distilled", "at_64")]
    compared = run("compare", *ids, "-o", str(tmp_path / "b.png"))
    assert b"n_matched = 2" in compared.stderr
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")

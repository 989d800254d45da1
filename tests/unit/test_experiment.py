"""The experiment's report says what its records say, and no more than they can show."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import figures, report
from experiments.plan import ARMS, PLANS
from experiments.results import FIGURES, Estimate, Record

PLAN = PLANS["small"]


def training(arm: str, seed: int, ce_first: float) -> Record:
    same = dict.fromkeys(FIGURES, 0.5) | {"ce_first": ce_first, "overlap": None}
    same["is_weak_control"] = arm == "frequent"
    return {"core_sparsity": "batch_topk", "seed": seed, "arm": arm, "k": 32, "n_tokens": 1000, **same}


def found(of_distilled: list[float], of_others: list[float]) -> Record:
    def records() -> Iterator[Record]:
        for arm in ARMS:
            for seed, ce_first in enumerate(of_distilled if arm == "distilled" else of_others):
                yield training(arm, seed, ce_first)

    cycle = {
        "n_core": 3,
        "retention": 1.0,
        "core_density": 0.2,
        "ce_increase": 0.3,
        "explained_variance": 0.7,
    }
    distillation = {
        "core_sparsity": "batch_topk", "seed": 0, "cycles": [cycle, cycle], "origins": [[3, 0], [2, 1]],
        "core": [{"density": 0.1, "score": 0.02, "origin_cycle": 0}],
    }  # fmt: skip
    match = {"share_reproduced": [0.25], "pairs": [{"best_cosine_random": 0.13}]}
    return {"trainings": list(records()), "distillations": [distillation], "chains": [{"match": match}]}


@pytest.mark.parametrize(
    ("of_distilled", "of_others", "verdict"),
    [
        ([0.10, 0.20, 0.30], [0.30, 0.41, 0.49], "the distilled core is better"),
        ([0.30, 0.41, 0.49], [0.10, 0.20, 0.30], "the distilled core is worse"),
        ([0.10, 0.20, 0.30], [0.13, 0.24, 0.31], "no difference that these seeds can show"),
        ([0.10, 0.50, 0.30], [0.30, 0.31, 0.29], "no difference that these seeds can show"),
        ([0.10], [0.30], "of one seed: nothing can be said of chance"),
    ],
)
def test_a_verdict_needs_an_interval_of_the_differences_seed_by_seed_that_leaves_out_zero(
    of_distilled: list[float], of_others: list[float], verdict: str
) -> None:
    lines = report.write(PLAN, found(of_distilled, of_others), []).splitlines()
    verdicts = [line for line in lines if line.startswith("- Against")]
    assert len(verdicts) == len(ARMS) - 1
    assert all(verdict in line for line in verdicts)


def test_a_control_that_is_much_the_same_core_is_called_weak_in_its_row() -> None:
    lines = report.write(PLAN, found([0.1, 0.2], [0.3, 0.4]), []).splitlines()
    weak = [line for line in lines if "(a weak control)" in line]
    assert [line.split("|")[1].strip() for line in weak] == [f"{ARMS['frequent']} (a weak control)"]


def test_a_mean_over_seeds_has_the_standard_error_of_the_mean() -> None:
    assert Estimate.of([1.0, 2.0, 3.0, None]) == (2.0, pytest.approx(1 / 3**0.5), 3)
    assert Estimate.of([1.0]) == (1.0, None, 1)
    assert Estimate.of([None]) is None


def test_half_an_interval_of_three_seeds_is_4_3_standard_errors_as_tables_of_student_have_it() -> None:
    assert Estimate(0.0, 1.0, 3).half_width == pytest.approx(4.303, abs=1e-3)
    assert Estimate(0.0, None, 1).half_width is None


def test_every_figure_is_drawn_and_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = found([0.1, 0.2, 0.3], [0.3, 0.4, 0.5])
    drawn, again = (figures.draw(PLAN, records, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in drawn] == [
        "ce_first.svg", "ev_first.svg", "retention.svg", "origins.svg", "density_against_score.svg",
    ]  # fmt: skip
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in again]


def test_every_training_of_a_plan_asks_for_a_core_that_its_arm_names() -> None:
    ids = {distilling: f"job_{distilling.seed}" for distilling in PLAN.distillations()}
    requests = [PLAN.training_request(each, ids, epochs=9) for each in PLAN.trainings()]
    assert len({request["name"] for request in requests}) == len(requests) == 3 * len(ARMS)
    by_name = {request["name"]: request for request in requests}
    other = by_name["training batch_topk seed 2 k 32: other seed"]["core"]
    assert other == {"kind": "selected", "cycle": {"job_id": "job_0"}}
    assert by_name["training batch_topk seed 1 k 32: none, all tokens"]["training"] == {"epochs": 9}

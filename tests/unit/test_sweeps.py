"""Which jobs one request asks for, and where in it each refusal points."""

from typing import Any

import pytest
from pydantic import ValidationError

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.planning import Plan, plan_distillations
from dmsae.service.requests import DistillationRequest, TrainingRequest, field_problems
from dmsae.service.sweeps import is_group, points_of

CYCLE = {"job_id": "job_1", "cycle_index": 2}
SELECTED = {"kind": "selected", "cycle": CYCLE}
ENERGY = {"kind": "energy", "cycle": CYCLE}


def plans_of(**body: Any) -> list[Plan]:
    request = DistillationRequest.model_validate({"preset": "demo", **body})
    return plan_distillations(request, allowed_roots=())


def problems_of(body: dict[str, Any], *, kind: type = DistillationRequest) -> list[FieldProblem]:
    try:
        request = kind.model_validate(body)
        if kind is DistillationRequest:
            plan_distillations(request, allowed_roots=())
        else:
            points_of(request)
    except ValidationError as error:
        return field_problems(error.errors(include_url=False))
    except InvalidConfig as error:
        return error.problems
    return []


def test_chains_are_as_many_jobs_each_with_a_seed_and_documents_of_its_own() -> None:
    plans = plans_of(chains=3, seed=7)
    configs = [plan.config for plan in plans]
    assert [(config.seed, config.chains, config.chain_index) for config in configs] == [
        (7, 3, 0),
        (8, 3, 1),
        (9, 3, 2),
    ]
    assert is_group(DistillationRequest(chains=3), plans)


def test_one_chain_is_one_job_and_no_group() -> None:
    plans = plans_of(chains=1, chain_index=0)
    assert len(plans) == 1
    assert not is_group(DistillationRequest(), plans)


def test_a_sweep_makes_a_job_of_each_combination_and_is_a_group_even_of_one() -> None:
    plans = plans_of(sweep={"k": [8, 16], "seed": [1, 2, 3]})
    found = [(plan.config.sae.k, plan.config.seed) for plan in plans]
    assert found == [(k, seed) for k in (8, 16) for seed in (1, 2, 3)]
    assert {plan.config.sae.n_latents for plan in plans} == {1024}
    request = DistillationRequest.model_validate({"preset": "demo", "sweep": {"k": [8]}})
    assert is_group(request, points_of(request))


def test_a_training_sweeps_its_core_too() -> None:
    request = TrainingRequest.model_validate({"sweep": {"core": [SELECTED, ENERGY], "k": [8, 16]}})
    points = points_of(request)
    assert [(point.core.kind if point.core else None, point.settings) for point in points] == [
        (kind, {"sae": {"k": k}}) for kind in ("selected", "energy") for k in (8, 16)
    ]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"sweep": {"k": [16, 2000]}}, "sweep.k.1", "invalid_value"),
        ({"sweep": {"k": []}}, "sweep.k", "invalid_value"),
        ({"sweep": {"k": ["16"]}}, "sweep.k.0", "invalid_value"),
        ({"sweep": {}}, "sweep", "invalid_value"),
        ({"sweep": {"core": [SELECTED]}}, "sweep.core", "unknown_field"),
        ({"sweep": {"k": [8, 8]}}, "sweep.k", "invalid_value"),
        ({"sweep": {"k": [8]}, "sae": {"k": 8}}, "sae.k", "invalid_value"),
        ({"sweep": {"seed": [0]}, "seed": 0}, "seed", "invalid_value"),
        ({"sweep": {"k": list(range(1, 18)), "seed": list(range(16))}}, "sweep", "too_many_jobs"),
        ({"sweep": {"seed": [0, 1]}, "chains": 2}, "chains", "invalid_value"),
        ({"chains": 2, "chain_index": 1}, "chain_index", "invalid_value"),
        ({"chains": 2, "seed": 2**31 - 1}, "seed", "invalid_value"),
        ({"chains": 65}, "chains", "invalid_value"),
        ({"sweep": {"k": [8, 16]}, "activations": {"layer": 30}}, "activations.layer", "layer_out_of_range"),
    ],
)
def test_a_group_that_cannot_work_is_refused_once_and_by_its_place(
    body: dict[str, Any], param: str, code: str
) -> None:
    found = problems_of({"preset": "demo", **body})
    assert [(problem.param, problem.code) for problem in found] == [(param, code)]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"core": {"kind": "best", "cycle": CYCLE}}, "core", "invalid_value"),
        ({"core": {"cycle": CYCLE}}, "core.kind", "missing_field"),
        ({"core": {"kind": "selected"}}, "core.cycle", "missing_field"),
        ({"core": {"kind": "filtered", "cycle": CYCLE}}, "core.min_selected", "missing_field"),
        ({"core": {"kind": "energy", "cycle": {"job_id": "../x"}}}, "core.cycle.job_id", "invalid_value"),
        ({"sweep": {"core": [SELECTED, {"kind": "frequent"}]}}, "sweep.core.1.cycle", "missing_field"),
        ({"core": SELECTED, "sweep": {"core": [ENERGY]}}, "core", "invalid_value"),
        ({"core": SELECTED, "n_cycles": 2}, "n_cycles", "unknown_field"),
    ],
)
def test_a_core_that_cannot_be_meant_is_refused_by_its_place(
    body: dict[str, Any], param: str, code: str
) -> None:
    found = problems_of(body, kind=TrainingRequest)
    assert [(problem.param, problem.code) for problem in found] == [(param, code)]

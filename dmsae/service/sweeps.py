"""Which jobs does one request ask for? The points of a sweep, or the chains of a distillation.

Where one of them is refused, the place in the request is named that its setting came from.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.requests import MOST_JOBS, MOST_PROBLEMS, DistillationRequest, JobRequest, merge_preset
from dmsae.sources import RequestedCore

SWEPT = {"core": "core", "k": "sae.k", "seed": "seed"}
"""What may be swept -> the setting that it is, the one that changes slowest first."""

Planned = TypeVar("Planned")


@dataclass(frozen=True)
class Point:
    """One job of a request: what sets it apart from the others, and where in the request that stands."""

    settings: Mapping[str, Any]
    core: RequestedCore | None = None
    """Of a training."""
    places: Mapping[str, str] | None = None
    """A setting -> its place in the request, where that is another."""


def points_of(request: JobRequest) -> list[Point]:
    """Give the jobs that a request asks for; one, if it asks for no group.

    Raises:
        InvalidConfig: there are too many, or a setting is said twice.
    """
    chosen = merge_preset(request)
    n_chains = (chosen.get("chains") or 1) if isinstance(request, DistillationRequest) else 1
    if request.sweep is not None:
        _check_sweep(request, n_chains=n_chains)
        return _sweep_points(request)
    is_one_chain = request.cloned_from is not None and "chain_index" in chosen
    if n_chains == 1 or is_one_chain:
        return [Point({}, getattr(request, "core", None))]
    if "chain_index" in chosen:
        rule = f"is filled in by the service, which makes {n_chains} jobs: leave it out"
        raise InvalidConfig([FieldProblem("chain_index", chosen["chain_index"], rule)])
    seed = chosen.get("seed") or 0
    return [Point({"seed": seed + index, "chain_index": index}) for index in range(n_chains)]


def is_group(request: JobRequest, points: Sequence[Any]) -> bool:
    """Tell whether a request is answered by a group: a sweep always is, be it of one job."""
    return request.sweep is not None or len(points) > 1


def plan_points(points: Iterable[Point], plan: Callable[[Point], Planned]) -> list[Planned]:
    """Plan every job of a request.

    Raises:
        InvalidConfig: with all that is refused, each once, named by its place in the request.
    """
    planned: list[Planned] = []
    problems: dict[tuple[str, str, str], FieldProblem] = {}
    for point in points:
        try:
            planned.append(plan(point))
        except InvalidConfig as error:
            for problem in (_placed(problem, point) for problem in error.problems):
                problems.setdefault((problem.param, problem.code, problem.rule), problem)
    if problems:
        raise InvalidConfig(list(problems.values())[:MOST_PROBLEMS])
    return planned


def _sweep_points(request: JobRequest) -> list[Point]:
    axes = _axes(request)
    points = []
    for values in product(*(list(enumerate(values)) for values in axes.values())):
        settings: dict[str, Any] = {}
        core, places = getattr(request, "core", None), {}
        for name, (index, value) in zip(axes, values, strict=True):
            places[SWEPT[name]] = f"sweep.{name}.{index}"
            if name == "core":
                core = value
            else:
                settings |= {"sae": {"k": value}} if name == "k" else {name: value}
        points.append(Point(settings, core, places))
    return points


def _axes(request: JobRequest) -> dict[str, list[Any]]:
    found = {name: getattr(request.sweep, name, None) for name in SWEPT}
    return {name: values for name, values in found.items() if values is not None}


def _check_sweep(request: JobRequest, *, n_chains: int) -> None:
    axes, problems = _axes(request), []
    sizes = {name: len(values) for name, values in axes.items()}
    n_jobs = math.prod(sizes.values())
    if not axes:
        problems.append(FieldProblem("sweep", {}, f"must name one of {', '.join(sorted(SWEPT))}"))
    if n_jobs > MOST_JOBS:
        rule = f"makes {n_jobs} jobs: a request makes at most {MOST_JOBS}"
        problems.append(FieldProblem("sweep", sizes, rule, "too_many_jobs"))
    if n_chains > 1:
        rule = "a sweep has no chains: submit the chains of each point by a request of their own"
        problems.append(FieldProblem("chains", n_chains, rule))
    chosen = request.model_dump(exclude_unset=True)
    said = {"core": chosen.get("core"), "seed": chosen.get("seed"), "k": (chosen.get("sae") or {}).get("k")}
    for name, values in axes.items():
        if said[name] is not None:
            rule = f"sweep.{name} says it too: leave one of them out"
            problems.append(FieldProblem(SWEPT[name], said[name], rule))
        if any(value in values[:index] for index, value in enumerate(values)):
            problems.append(FieldProblem(f"sweep.{name}", sizes[name], "a value stands there twice"))
    if problems:
        raise InvalidConfig(problems)


def _placed(problem: FieldProblem, point: Point) -> FieldProblem:
    """Name a problem by where its setting stands in the request."""
    for setting, place in (point.places or {}).items():
        if problem.param == setting or problem.param.startswith(f"{setting}."):
            return replace(problem, param=place + problem.param[len(setting) :])
    return problem

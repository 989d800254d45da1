"""How does a request become resolved configs? With what is known of each job before it runs.

Everything that can be known to fail is refused here, before anything is stored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.orm import Session

from dmsae.config import CoreTrainingConfig, CycleConfig, DistillationConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.allowed_paths import check_text_paths
from dmsae.service.bounds import find_too_large, find_unfit
from dmsae.service.given_cores import GivenCore, check_fit, find_given, find_named
from dmsae.service.known_models import ModelFacts, find_facts
from dmsae.service.objects import ObjectStore
from dmsae.service.requests import (
    DistillationRequest,
    TrainingRequest,
    merge_preset,
    overlay,
    shown,
    validate_config,
)
from dmsae.service.sweeps import Point, plan_points, points_of
from dmsae.service.text_objects import pin_objects


@dataclass(frozen=True)
class Plan:
    """One job as it would be submitted."""

    config: DistillationConfig | CoreTrainingConfig
    facts: ModelFacts
    """What is known of its model."""
    given: GivenCore | None = None
    """The cycle that a training's core, or its width, comes from."""

    @property
    def kind(self) -> str:
        """Kind of job."""
        return "training" if isinstance(self.config, CoreTrainingConfig) else "distillation"

    @property
    def n_cycles(self) -> int:
        """Cycles of the job."""
        return self.config.n_cycles if isinstance(self.config, DistillationConfig) else 1

    @property
    def n_given(self) -> int:
        """Latents of the core that its first cycle starts from."""
        return 0 if self.given is None else self.given.n_given


def plan_distillations(request: DistillationRequest, *, allowed_roots: Sequence[Path]) -> list[Plan]:
    """Give the jobs that a request for a distillation makes: one, its chains, or the points of its sweep.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work.
    """

    def plan(point: Point) -> Plan:
        settings = overlay(merge_preset(request), point.settings)
        config = validate_config(DistillationConfig, settings)
        return Plan(config, _check(config, allowed_roots))

    return plan_points(points_of(request), plan)


def plan_trainings(
    session: Session, request: TrainingRequest, *, allowed_roots: Sequence[Path]
) -> list[Plan]:
    """Give the jobs that a request for a training makes: one, or the points of its sweep.

    What the request leaves out is as in the job that the core comes from.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work, and where the core does not fit.
    """

    def plan(point: Point) -> Plan:
        if point.core is None:
            rule = "is required: what the SAE is built around, such as {'kind': 'selected', 'cycle': ...}"
            raise InvalidConfig([FieldProblem("core", None, rule, "missing_field")])
        core = find_named(session, point.core)
        given = find_given(session, core)
        settings = overlay(merge_preset(request), point.settings)
        if given is not None:
            settings = {**overlay(given.inherited(), settings), "core": given.resolved(core)}
        else:
            settings = {**settings, "core": core.model_dump()}
        config = validate_config(CoreTrainingConfig, settings)
        facts = _check(config, allowed_roots)
        problems = [] if given is None else check_fit(config, given, facts)
        if problems:
            raise InvalidConfig(problems)
        return Plan(config, facts, given)

    return plan_points(points_of(request), plan)


def pin_texts(plans: Sequence[Plan], store: ObjectStore, *, prefixes: Sequence[str]) -> list[Plan]:
    """Give plans with size and etag of every stored object of their texts, each text asked for once.

    Raises:
        InvalidConfig: naming each object that may not be read, is not there, or holds other bytes than said.
        Unavailable: the store does not answer.
    """
    pinned: dict[str, CycleConfig] = {}
    done = []
    for plan in plans:
        name = json.dumps(plan.config.data.model_dump(mode="json"), sort_keys=True)
        if name not in pinned:
            pinned[name] = pin_objects(plan.config, store, prefixes=prefixes)
        done.append(replace(plan, config=plan.config.model_copy(update={"data": pinned[name].data})))
    return done


def _check(config: CycleConfig, allowed_roots: Sequence[Path]) -> ModelFacts:
    """Give what is known of the model, having checked all that is known of model and text."""
    unfit = find_unfit(config)
    if unfit:
        raise InvalidConfig(unfit)
    facts = find_facts(config.model, allowed_roots)
    check_text_paths(config.data.text, allowed_roots)
    problems = [*_check_model(config, facts), *_check_tokens(config)] or find_too_large(config, facts)
    if problems:
        raise InvalidConfig(problems)
    return facts


def _check_model(config: CycleConfig, facts: ModelFacts) -> list[FieldProblem]:
    problems = []
    layer, context_length = config.activations.layer, config.data.context_length
    if facts.n_layers is not None and layer >= facts.n_layers:
        rule = f"{facts.name} has {facts.n_layers} layers: at most {facts.n_layers - 1}"
        problems.append(FieldProblem("activations.layer", layer, rule, "layer_out_of_range"))
    if facts.n_positions is not None and context_length > facts.n_positions:
        rule = f"{facts.name} reads at most {facts.n_positions} tokens at once"
        problems.append(FieldProblem("data.context_length", context_length, rule, "context_too_long"))
    return problems


def _check_tokens(config: CycleConfig) -> list[FieldProblem]:
    n_tokens, batch_tokens = config.training.n_tokens, config.training.batch_tokens
    if n_tokens is None or n_tokens >= batch_tokens:
        return []
    rule = f"must be at least one batch: training.batch_tokens = {batch_tokens}"
    return [FieldProblem("training.n_tokens", shown(n_tokens), rule)]

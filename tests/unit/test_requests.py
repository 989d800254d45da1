"""What a client may say, and how each refusal names field, value and rule."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dmsae.config import DistillationConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.presets import PRESETS
from dmsae.service import estimates
from dmsae.service.planning import Plan, plan_distillations
from dmsae.service.requests import DistillationRequest, field_problems, merge_preset, shown

LLAMA = """{"num_hidden_layers": 4, "hidden_size": 64, "max_position_embeddings": 256, "vocab_size": 1000,
 "intermediate_size": 128, "num_attention_heads": 4, "tie_word_embeddings": true}"""


FILES = {"source": "files", "paths": ["/etc/*.txt"]}


def plan_of(**body: Any) -> Plan:
    """The one job that a body asks for."""
    (plan,) = plan_distillations(DistillationRequest.model_validate(body), allowed_roots=())
    return plan


def problems_of(body: Any, *, allowed_roots: tuple[Path, ...] = ()) -> list[FieldProblem]:
    """What is refused about a body; none if nothing is."""
    try:
        plan_distillations(DistillationRequest.model_validate(body), allowed_roots=allowed_roots)
    except ValidationError as error:
        return field_problems(error.errors(include_url=False))
    except InvalidConfig as error:
        return error.problems
    return []


def refused(section: str, **settings: Any) -> list[tuple[str, str]]:
    body = {"preset": "demo", **({section: settings} if section else settings)}
    return [(problem.param, problem.code) for problem in problems_of(body)]


def test_a_preset_alone_gives_its_settings() -> None:
    config = plan_of(preset="demo").config
    assert config == DistillationConfig.model_validate(PRESETS["demo"])


def test_what_is_set_replaces_the_presets_value_and_leaves_its_neighbours() -> None:
    config = plan_of(preset="demo", seed=5, sae={"k": 16}, training={"lr": 1}).config
    assert (config.seed, config.sae.k, config.training.lr) == (5, 16, 1.0)
    assert config.sae.block_widths == PRESETS["demo"]["sae"]["block_widths"]
    assert config.training.batch_tokens == PRESETS["demo"]["training"]["batch_tokens"]


def test_another_model_replaces_the_presets_as_a_whole() -> None:
    body = {"preset": "demo", "model": {"source": "local", "path": "/models/x"}}
    merged = merge_preset(DistillationRequest.model_validate(body))
    assert merged["model"] == {"source": "local", "path": "/models/x"}


def test_every_setting_of_the_config_is_in_the_request_with_its_text() -> None:
    schema = DistillationRequest.model_json_schema()
    for name, info in DistillationConfig.model_fields.items():
        assert name in schema["properties"]
        inner = getattr(info.annotation, "model_fields", {})
        for field, inner_info in inner.items():
            shown_field = schema["$defs"][f"Partial{name.title()}"]["properties"][field]
            assert shown_field.get("description") == inner_info.description
            assert "default" not in shown_field


@pytest.mark.parametrize(
    ("section", "settings", "param", "code"),
    [
        ("sae", {"k": 2000}, "sae.k", "invalid_value"),
        ("sae", {"block_widths": [128, 64]}, "sae.block_widths.1", "invalid_value"),
        ("sae", {"block_widths": [128, 1024]}, "sae.block_widths.1", "invalid_value"),
        ("sae", {"n_latents": "1024"}, "sae.n_latents", "invalid_value"),
        ("sae", {"k": True}, "sae.k", "invalid_value"),
        ("sae", {"kk": 3}, "sae.kk", "unknown_field"),
        ("", {"device": "tpu"}, "device", "invalid_value"),
        ("", {"sead": 2}, "sead", "unknown_field"),
        ("", {"seed": None}, "seed", "invalid_value"),
        ("", {"model": {"source": "hub", "id": "a/b"}}, "model.revision", "missing_field"),
        (
            "",
            {"model": {"source": "hub", "id": "a/b", "revision": "main"}},
            "model.revision",
            "invalid_value",
        ),
        ("", {"model": {"source": "wandb"}}, "model", "invalid_value"),
        ("", {"model": {"path": "/x"}}, "model.source", "missing_field"),
        ("", {"model": {"source": "local"}}, "model.path", "missing_field"),
        ("", {"data": {"text": {"source": "files", "paths": []}}}, "data.text.paths", "invalid_value"),
        ("", {"data": {"text": FILES}}, "data.text.paths.0", "path_not_allowed"),
        (
            "",
            {"data": {"text": {**FILES, "paths": ["/tmp/x/../*.txt"]}}},
            "data.text.paths.0",
            "path_not_allowed",
        ),
        ("activations", {"layer": 30}, "activations.layer", "layer_out_of_range"),
        ("activations", {"hook": "mlp_in"}, "activations.hook", "invalid_value"),
        ("data", {"context_length": 1}, "data.context_length", "invalid_value"),
        ("data", {"context_length": 8193}, "data.context_length", "context_too_long"),
        ("data", {"split": [0.5, 0.5, 0.0]}, "data.split.2", "invalid_value"),
        ("data", {"split": [0.5, 0.2, 0.2]}, "data.split", "invalid_value"),
        ("selection", {"attribution_fraction": 0}, "selection.attribution_fraction", "invalid_value"),
        ("selection", {"attribution_fraction": 1.5}, "selection.attribution_fraction", "invalid_value"),
        ("selection", {"max_core": 256}, "selection.max_core", "invalid_value"),
        ("training", {"n_tokens": 100}, "training.n_tokens", "invalid_value"),
        ("training", {"lr": float("nan")}, "training.lr", "invalid_value"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(
    section: str, settings: dict[str, Any], param: str, code: str
) -> None:
    assert refused(section, **settings) == [(param, code)]


def test_an_unknown_preset_is_refused_with_those_that_are_known() -> None:
    (problem,) = problems_of({"preset": "dmeo"})
    assert (problem.param, problem.value, problem.code) == ("preset", "dmeo", "unknown_preset")
    assert "demo" in problem.rule


def test_without_a_preset_every_missing_setting_is_named() -> None:
    names = {problem.param for problem in problems_of({})}
    assert names == {"n_cycles", "model", "data", "activations", "sae"}


def test_a_local_model_must_lie_under_an_allowed_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    for folder in (root / "good", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")

    def code_of(path: object) -> list[str]:
        body = {"preset": "demo", "model": {"source": "local", "path": str(path)}}
        return [problem.code for problem in problems_of(body, allowed_roots=(root,))]

    assert code_of(root / "good") == []
    assert code_of(root / "not_there_yet") == []
    dots, nul = f"{root}/good/../../outside", f"{root}/a\0b"
    for path in (outside, root / "link", dots, "models/good", f"{root}evil", "/"):
        assert code_of(path) == ["path_not_allowed"], path
    for path in ("", nul, f"{root}/a\ud800"):
        assert code_of(path) == ["invalid_value"]


def test_the_sizes_of_a_local_model_are_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(LLAMA)
    body = {
        "preset": "demo",
        "model": {"source": "local", "path": str(tmp_path)},
        "activations": {"layer": 4},
        "data": {"context_length": 257},
    }
    found = problems_of(body, allowed_roots=(tmp_path,))
    assert [problem.code for problem in found] == ["layer_out_of_range", "context_too_long"]


@pytest.mark.parametrize("content", ["", "[]", '{"num_hidden_layers": true}', "[" * 100_000, "x" * (2 << 20)])
def test_a_config_that_says_nothing_is_left_to_the_worker(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    body = {
        "preset": "demo",
        "model": {"source": "local", "path": str(tmp_path)},
        "activations": {"layer": 99},
    }
    assert problems_of(body, allowed_roots=(tmp_path,)) == []


def test_later_widths_are_bounds_that_grow_by_one_first_block_until_the_core_is_full() -> None:
    plan = plan_of(preset="demo")
    described = estimates.describe(plan)
    assert [cycle["n_core"] for cycle in described["cycles"]] == [0, 128, 240]
    assert [cycle["is_exact"] for cycle in described["cycles"]] == [True, False, False]
    assert described["cycles"][0]["prefix_widths"] == [128, 256, 512, 768, 1024]
    assert described["memory"]["value"] > 4 * plan.facts.n_parameters
    assert described["time"]["value"] is None


def test_what_is_shown_of_a_bad_value_is_short_and_plain_json() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 10_000, float("inf"), deep, {"a": b"bytes"}, list(range(10_000))):
        text = shown(value)
        assert isinstance(text, str)
        assert len(text) < 250
    assert shown([1, 2]) == [1, 2]

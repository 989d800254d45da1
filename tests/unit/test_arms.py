"""What is compared with what: which settings part two jobs, and what an SAE is called by its core."""

from typing import Any

import pytest

from dmsae.service.arms import arm_of, digest_of, settings_of, setup_labels

CONFIG: dict[str, Any] = {
    "seed": 0,
    "device": "cpu",
    "n_threads": 2,
    "chains": 1,
    "chain_index": 0,
    "model": {"source": "builtin", "name": "smollm2-135m"},
    "activations": {"layer": 15, "scale": None},
    "sae": {"k": 32, "n_latents": 2048, "block_widths": [128, 384]},
    "training": {"lr": 0.0003, "step": "auto"},
    "core": {"kind": "none", "n_matched": None, "width_of": None},
}


def changed(**sections: Any) -> dict[str, Any]:
    inner = {name: {**CONFIG[name], **value} for name, value in sections.items() if isinstance(value, dict)}
    return {**CONFIG, **sections, **inner}


@pytest.mark.parametrize(
    "config",
    [
        changed(seed=5, chain_index=1, device="cuda", n_threads=8),
        changed(sae={"k": 64}, training={"step": "plain"}),
        changed(activations={"scale": {"rms": 2.5, "median_norm": 14.0}}),
        changed(core={"kind": "energy", "cycle": {"job_id": "a", "cycle_index": 1}}),
    ],
)
def test_what_changes_no_result_and_what_is_compared_parts_no_jobs(config: dict[str, Any]) -> None:
    assert digest_of(settings_of(config)) == digest_of(settings_of(CONFIG))


def test_jobs_that_differ_are_told_apart_by_what_they_differ_in() -> None:
    both = [settings_of(CONFIG), settings_of(changed(sae={"block_widths": [64]}, training={"lr": 0.01}))]
    labels = setup_labels([*both, both[0]])
    assert [labels[digest_of(settings)] for settings in both] == [
        "sae.block_widths = [128, 384], training.lr = 0.0003",
        "sae.block_widths = [64], training.lr = 0.01",
    ]
    assert setup_labels(both[:1]) == {digest_of(both[0]): ""}


def test_an_arm_is_called_by_what_the_sae_is_built_around() -> None:
    cycle = {"job_id": "a", "cycle_index": 2}
    cores: list[tuple[dict[str, Any], str]] = [
        ({"kind": "selected", "cycle": cycle}, "distilled core"),
        ({"kind": "selected", "cycle": {**cycle, "cycle_index": 0}}, "distilled core, of cycle 0"),
        ({"kind": "filtered", "cycle": cycle, "min_selected": 3}, "filtered core, selected 3 times or more"),
        ({"kind": "random_directions", "cycle": cycle, "seed": 1}, "random directions"),
        ({"kind": "none", "n_matched": 99, "width_of": cycle}, "no core, as wide"),
        ({"kind": "none", "n_matched": None, "width_of": None}, "no core, not as wide"),
    ]
    for core, label in cores:
        assert arm_of("training", {"core": core}, {"a": 2}).label == label
    assert arm_of("distillation", {"n_cycles": 5}, {}).label == "distillation, last cycle of 5"

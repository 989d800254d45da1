"""What a cycle is said to store is what it stores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dmsae.config import CycleSpec, DistillationConfig
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.service import sizes
from dmsae.service.known_models import ModelFacts
from dmsae.sources import COMPRESSION_SUFFIXES, TEXT_SUFFIXES
from tests.tiny import save_tiny_model, tiny_config, tiny_spec

D_MODEL = 32


class Silence:
    """Hears what a cycle reports."""

    def phase(self, phase: str) -> None:
        pass

    def progress(self, figures: dict[str, Any]) -> None:
        pass

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders that the first two cycles of a tiny distillation left."""
    folder = tmp_path_factory.mktemp("sizes")
    model = save_tiny_model(folder / "model", d_model=D_MODEL)
    few = {"training": {"n_tokens": 4096, "batch_tokens": 256, "threshold_tokens": 512}}
    outs = [folder / str(cycle_index) for cycle_index in (0, 1)]
    for cycle_index, out in enumerate(outs):
        spec = CycleSpec.model_validate(tiny_spec(model, cycle_index=cycle_index, **few))
        places = Places(folder / "cache", outs[0] / "core" if cycle_index else None)
        run_cycle(spec, out, places=places, report=Silence())
    return outs


def test_the_sizes_of_all_tensor_files_are_exact(outs: list[Path]) -> None:
    for out in outs:
        lineage = json.loads((out / "lineage.json").read_text())
        n_latents = json.loads((out / "spec.json").read_text())["config"]["sae"]["n_latents"]
        found = {path.name: path.stat().st_size for path in out.rglob("*.safetensors")}
        assert found == {
            "sae_weights.safetensors": sizes.sae_bytes(D_MODEL, n_latents),
            "core.safetensors": sizes.core_bytes(D_MODEL, lineage["n_core"]),
            "scores.safetensors": sizes.scores_bytes(lineage["n_candidates"], n_latents),
        }


def test_a_cycle_stores_less_than_was_said_and_not_much_less(outs: list[Path]) -> None:
    for cycle_index, out in enumerate(outs):
        spec = json.loads((out / "spec.json").read_text())
        config = DistillationConfig.model_validate(spec["config"])
        facts, n_given = ModelFacts("tiny", d_model=D_MODEL), sizes.core_bound(config, cycle_index)
        said = sizes.stored_bytes(config, facts, cycle_index, n_given=n_given)
        files = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
        texts = sum(size for path, size in files.items() if path.parent.name == "snippets")
        bound = sizes.snippets_bytes(config, min(config.max_core, config.prefix_widths(n_given)[0]))
        assert said is not None
        assert 0 < texts <= bound <= config.snippets.budget_bytes
        assert 0 <= (said - bound) - (sum(files.values()) - texts) <= 2 * sizes.TEXTS_BYTES


def test_any_tensors_of_one_type_have_the_size_that_is_computed(tmp_path: Path) -> None:
    for n in (1, 9, 10, 1000):
        shapes = {"a": (n, 3), "b": (n,)}
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "t.safetensors")
        assert (tmp_path / "t.safetensors").stat().st_size == sizes.tensors_bytes(shapes, "F32")


def test_a_model_of_unknown_width_has_no_size() -> None:
    config = DistillationConfig.model_validate(tiny_config(Path("/model")))
    assert sizes.stored_bytes(config, ModelFacts("unknown"), 0, n_given=0) is None


def test_most_of_a_large_cycle_is_its_tensors() -> None:
    config = DistillationConfig.model_validate(
        tiny_config(Path("/model"), sae={"n_latents": 65_536, "k": 320, "block_widths": [2048, 30_720]})
    )
    said = sizes.stored_bytes(config, ModelFacts("wide", d_model=2304), 0, n_given=0)
    assert said is not None
    assert said == pytest.approx(sizes.sae_bytes(2304, 65_536), rel=0.1)


def test_what_is_uploaded_is_what_the_trainer_reads() -> None:
    text_files = pytest.importorskip("dmsae.text_files")
    assert set(TEXT_SUFFIXES) == set(text_files.FORMATS)
    assert set(COMPRESSION_SUFFIXES) == set(text_files.COMPRESSIONS)

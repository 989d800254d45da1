"""What Neuronpedia is given of a cycle: rows of its tables, and values that are those the cycle stored."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dmsae import neuronpedia
from dmsae.errors import DmsaeError, InvalidConfig
from dmsae.formats import save_sae
from dmsae.logit_lens import LogitLens, TokenValue
from dmsae.neuronpedia import Exported, Names, export_neuronpedia
from dmsae.snippet_files import pack_record, write_snippets
from dmsae.snippets import LatentFirings, Snippet
from dmsae.token_texts import TokenTexts
from tests.neuronpedia_tables import read_tables
from tests.tiny import tiny_tokenizer
from tests.unit.test_formats import D_MODEL, make_sae

RMS = 4.0
HUB_MODEL = {"source": "hub", "id": "google/Gemma-2-2b", "revision": "0" * 40}
LENS = LogitLens("folded", [TokenValue(" \u2028a", 2.5), TokenValue("b", 1.0)], [TokenValue("<c>", -3.0)])
TEN = [0, 0, 0, 0, 3, 0, 0, 0, 0, 2]
FIRINGS = LatentFirings(
    n_tokens=100,
    n_firings=5,
    low=1.0,
    high=3.0,
    n_firings_of_deciles=TEN,
    snippets=[
        Snippet("strongest", 10, [40, 41, 42], [None, 0.0, 3.0], 2),
        Snippet("strongest", 5, [43, 44], [2.0, 1.0], 0),
        Snippet("random", 5, [45, 46, 47, 48], [0.0, 1.9, 1.95, None], 1),
        Snippet("random", 10, [49], [2.9], 0),
    ],
)
SILENT = LatentFirings(100, 0, 0.0, 0.0, [0] * 10, [])
SELECTED = [[7, "job_a.1.7"], [2, "job_a.0.2"], [9, "job_a.1.9"]]


def write_cycle(folder: Path, *, model: dict[str, Any] = HUB_MODEL, hook: str = "resid_post") -> Path:
    """Write what a cycle stores: three latents of a core, the last without room for its record."""
    about = {"job_id": "job_a", "cycle_index": 1, "model": model, "selected": SELECTED, "context_size": 64}
    save_sae(folder / "sae", make_sae(), rms=RMS, facts=about)
    text = {"source": "hub", "id": "lab/pile", "revision": "1" * 40, "files": ["*"]}
    config = {"activations": {"layer": 12, "hook": hook}, "data": {"text": text}}
    (folder / "spec.json").write_text(json.dumps({"config": config}))
    texts = TokenTexts(tiny_tokenizer())
    records = [
        pack_record(firings, LENS, latent_id=latent_id, texts=texts, most_bytes=1 << 20)
        for firings, (_, latent_id) in zip((FIRINGS, SILENT), SELECTED[:2], strict=True)
    ]
    write_snippets(folder / "snippets", [*records, b""])
    return folder


@pytest.fixture
def cycle(tmp_path: Path) -> Path:
    return write_cycle(tmp_path / "cycle")


def export(cycle: Path, out: Path, **names: str) -> tuple[Exported, dict[str, list[Any]]]:
    exported = export_neuronpedia(cycle, out, names=Names(**names))
    return exported, read_tables(exported.source_folder)


def test_rows_are_of_neuronpedias_tables_and_lead_to_each_other(cycle: Path, tmp_path: Path) -> None:
    exported, tables = export(cycle, tmp_path / "out")
    place = tmp_path / "out" / "gemma-2-2b" / "12-res-dmsae-job_a-1"
    assert exported == Exported(place, n_latents=2, n_texts=4, n_left_out=1)
    (source,) = tables["source.jsonl"]
    assert (source.num_tokens_in_prompt, source.dataset) == (64, "lab/pile")
    assert source.saelensConfig == json.loads((cycle / "sae" / "cfg.json").read_text())
    assert [row.index for row in tables["features"]] == ["7", "2"]
    assert tables["model.jsonl"][0].dimension == D_MODEL
    for file in (cycle / "sae").iterdir():
        assert (tmp_path / "out" / "sae" / file.name).read_bytes() == file.read_bytes()


def test_a_latent_has_the_density_lens_and_firings_that_the_cycle_stored(cycle: Path, tmp_path: Path) -> None:
    _, tables = export(cycle, tmp_path / "out")
    loud, silent = tables["features"]
    assert (loud.frac_nonzero, loud.maxActApprox) == (0.05, RMS * 3.0)
    assert (loud.pos_str, loud.pos_values) == ([" \u2028a", "b"], [2.5, 1.0])
    assert (loud.neg_str, loud.neg_values) == (["<c>"], [-3.0])
    assert loud.freq_hist_data_bar_heights == TEN
    middles = [RMS * (1.1 + 0.2 * tenth) for tenth in range(10)]
    assert loud.freq_hist_data_bar_values == pytest.approx(middles)
    assert (silent.frac_nonzero, silent.maxActApprox, silent.freq_hist_data_bar_heights) == (0, 0, [])


def test_texts_are_at_the_saes_own_scale_the_strongest_first(cycle: Path, tmp_path: Path) -> None:
    _, tables = export(cycle, tmp_path / "out")
    texts = tables["activations"]
    assert {text.index for text in texts} == {"7"}
    assert [text.values for text in texts] == [[0, 0, 12], [8, 4], [11.6], [0, 7.6, 7.8, 0]]
    of = TokenTexts(tiny_tokenizer()).of
    assert [text.tokens for text in texts[:2]] == [[of(40), of(41), of(42)], [of(43), of(44)]]
    assert [text.maxValue for text in texts] == [12, 8, 11.6, 7.8]
    assert [text.maxValueTokenIndex for text in texts] == [2, 0, 0, 2]
    assert [text.qualifyingTokenIndex for text in texts] == [2, 0, 0, 1]
    assert [text.minValue for text in texts] == [0, 4, 11.6, 0]
    bins = [(text.binMin, text.binMax, text.binContains) for text in texts]
    assert bins[:2] == [(-1, 12, -1)] * 2
    assert bins[2] == pytest.approx((RMS * 2.8, RMS * 3.0, 0.02))
    assert bins[3] == pytest.approx((RMS * 1.8, RMS * 2.0, 0.03))


def test_batches_hold_as_many_latents_as_they_may_each_once_in_both_forms(
    cycle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "LATENTS_PER_BATCH", 1)
    exported, tables = export(cycle, tmp_path / "out")
    assert sorted(file.name for file in (exported.source_folder / "features").iterdir()) == [
        "batch-0.jsonl.gz",
        "batch-1.jsonl.gz",
    ]
    found = [json.loads((tmp_path / "out" / "saedashboard" / f"batch-{n}.json").read_text()) for n in (0, 1)]
    assert [batch["features"][0]["feature_index"] for batch in found] == [7, 2]
    assert [(batch["model_id"], batch["layer"]) for batch in found] == [("gemma-2-2b", 12)] * 2
    shown = [text["values"] for batch in found for text in batch["features"][0]["activations"]]
    assert shown == [text.values for text in tables["activations"]]


def test_an_export_is_the_same_every_time_and_under_the_names_that_are_given(
    cycle: Path, tmp_path: Path
) -> None:
    names = {"model_id": "gpt2-small", "source_set": "core-lab", "creator_id": "c1"}
    for out in ("a", "b"):
        exported, tables = export(cycle, tmp_path / out, **names)
    assert exported.source_folder == tmp_path / "b" / "gpt2-small" / "12-core-lab"
    assert {row.creatorId for rows in tables.values() for row in rows} == {"c1"}
    written = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file()]
    for file in written:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("names", "param", "told"),
    [
        ({}, "model_id", "is required for a model on a worker's disk"),
        ({"model_id": "../up"}, "model_id", "must be of letters"),
        ({"model_id": "m", "source_set": "a/b"}, "source_set", "must be of letters"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, names: dict[str, str], param: str, told: str
) -> None:
    cycle = write_cycle(tmp_path / "cycle", model={"source": "local", "path": "/models/m"})
    with pytest.raises(InvalidConfig, match=told) as caught:
        export(cycle, tmp_path / "out", **names)
    assert caught.value.param == param
    assert not (tmp_path / "out").exists()


def test_a_cycle_without_texts_torn_ones_and_a_full_folder_are_refused(cycle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DmsaeError, match="must be empty"):
        export(cycle, tmp_path / "out")
    records = cycle / "snippets" / "latents.jsonl.gz"
    records.write_bytes(records.read_bytes()[:-10])
    with pytest.raises(DmsaeError, match="is torn"):
        export(cycle, tmp_path / "torn")
    records.unlink()
    with pytest.raises(DmsaeError, match=r"snippets\.budget_bytes"):
        export(cycle, tmp_path / "none")


def test_the_small_install_of_the_client_exports_without_torch() -> None:
    told = "import sys, dmsae.neuronpedia; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0

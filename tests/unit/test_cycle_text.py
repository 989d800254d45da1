"""Which tokens a cycle works on: cycles on files and ready-made activations, and texts that are too small."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmsae.config import CycleSpec, DistillationConfig
from dmsae.cycle_inputs import Places, harvest_parts, open_run, read_contexts
from dmsae.cycle_steps import run_cycle
from dmsae.cycle_text import MARGIN, tokens_needed
from dmsae.errors import CycleFailed
from dmsae.hooks import resolve_hook, run_lower
from dmsae.stream import Order, TokenStream
from tests.fake_hub import REVISION, fake_hub
from tests.recorder import Recorder
from tests.texts import json_lines, passages, write_bytes, write_rows
from tests.tiny import save_tiny_model, tiny_config, tiny_loaded, tiny_spec

SMALL = {
    "training": {"n_tokens": 4096, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 1024},
    "attribution": {"n_tokens": 300, "ablation_tokens": 50, "ablation_latents": 2},
    "evaluation": {"n_tokens": 300},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def spec_of(model, text, *, context_length=32, data=None, **settings):
    data = {"text": text, "context_length": context_length, "split": [0.8, 0.1, 0.1], **(data or {})}
    return CycleSpec.model_validate(tiny_spec(model, data=data, **{**SMALL, **settings}))


def files(*paths, **settings):
    return {"source": "files", "paths": list(map(str, paths)), **settings}


def run(spec, out, **places):
    report = Recorder()
    run_cycle(spec, out, places=Places(out.parent / "cache", **places), report=report)
    return report


def refusal(spec, folder, **places):
    with pytest.raises(CycleFailed) as caught:
        run(spec, folder / "out", **places)
    assert not (folder / "out").exists()
    return caught.value


def weights(out):
    return load_file(out / "sae" / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A text of some tens of thousands of tokens, with rows that are none."""
    folder = tmp_path_factory.mktemp("rows").resolve()
    readable = [{"text": text} for text in passages(250)]
    return write_bytes(
        folder / "rows.jsonl.zst", json_lines([*readable, {"text": None}, {"text": "a"}, b"?"])
    )


@pytest.mark.parametrize("data", [{}, {"packing": "packed", "prepend_bos": True}])
def test_a_cycle_runs_on_files_and_again_without_them_to_the_same_bits(
    model, rows, tmp_path, monkeypatch, data
):
    spec = spec_of(model, files(rows.parent / "*"), data=data)
    report = run(spec, tmp_path / "first", allowed_roots=[rows.parent])
    assert report.events["rows_skipped"][1] == {"null": 1, "not_json": 1, "one_token": 1}
    assert json.loads((tmp_path / "first" / "metrics.json").read_text())["n_tokens"] == 4096
    monkeypatch.setattr("dmsae.documents.read_rows", None)
    again = run(spec, tmp_path / "again", allowed_roots=[rows.parent])
    assert again.events["rows_skipped"] == report.events["rows_skipped"]
    for name, expected in weights(tmp_path / "first").items():
        assert torch.equal(weights(tmp_path / "again")[name], expected)


def test_training_goes_on_at_any_step_as_if_it_had_never_stopped(model, rows, tmp_path):
    spec = spec_of(model, files(rows), activations={"layer": 1, "shuffle_window_contexts": 256})
    harvest = harvested(spec, tmp_path)

    def stream():
        return TokenStream(harvest.windows, harvest.survey, spec.config.training, order=Order(0, 0))

    whole = list(stream())
    again = harvested(spec, tmp_path)
    assert len(whole) == 16
    for step in (0, 5, 15):
        resumed = TokenStream(again.windows, again.survey, spec.config.training, order=Order(0, 0))
        stopped = stream()
        stopped.seek(step)
        resumed.load_state_dict(stopped.state_dict())
        rest = list(resumed)
        assert len(rest) == 16 - step
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[step:], strict=True))


def harvested(spec, folder, **places):
    opened = open_run(spec, places=Places(folder / "cache", **places), report=Recorder())
    return harvest_parts(opened, read_contexts(opened))


def test_only_as_much_is_read_as_the_parts_need(model):
    config = DistillationConfig.model_validate(tiny_config(model, **SMALL))
    needed = tokens_needed(config, margin=MARGIN)
    assert needed == {"training": 112_500, "attribution": 338, "evaluation": 338}
    once = {**SMALL["training"], "n_tokens": 200_000}
    config = DistillationConfig.model_validate(tiny_config(model, **{**SMALL, "training": once}))
    assert tokens_needed(config, margin=0.5)["training"] == 1.5 * (200_000 + 1024)
    twice = {**SMALL["training"], "n_tokens": 1_000_001, "epochs": 2}
    config = DistillationConfig.model_validate(tiny_config(model, **{**SMALL, "training": twice}))
    assert tokens_needed(config, margin=0.5)["training"] == 750_002
    everything = {**SMALL["training"], "n_tokens": None}
    config = DistillationConfig.model_validate(tiny_config(model, **{**SMALL, "training": everything}))
    assert tokens_needed(config, margin=0.5)["training"] is None


def test_where_norms_drop_more_than_the_margin_the_text_is_read_on(model, rows, tmp_path, monkeypatch):
    """Half of all tokens exceed the median; a margin of an eighth is not enough for them."""
    monkeypatch.setattr("dmsae.cycle_text.SCALE_TOKENS", 1)
    monkeypatch.setattr("dmsae.contexts.BATCH_DOCUMENTS", 4)
    loud = {"layer": 1, "max_norm_multiple": 1.0}
    spec = spec_of(model, files(rows), activations=loud, data={"split": [0.6, 0.2, 0.2]})
    harvest = harvested(spec, tmp_path)
    assert harvest.survey.tally.n_kept >= 4096
    assert harvest.dropped["training"].norm > 1000
    n_folders = len(list((tmp_path / "cache" / "tokens").glob("*/")))
    assert n_folders > 1
    again = harvested(spec, tmp_path)
    assert again.survey.scale == harvest.survey.scale
    assert again.survey.tally.counts == harvest.survey.tally.counts


def test_a_text_that_ends_before_the_budget_is_exhausted_with_what_was_seen(model, rows, tmp_path):
    spec = spec_of(model, files(rows), training={**SMALL["training"], "n_tokens": 10**6})
    error = refusal(spec, tmp_path)
    assert (error.failure, error.param) == ("dataset_exhausted", "training.n_tokens")
    assert "250 documents" in error.message
    assert "3 rows skipped (1 not_json, 1 null, 1 one_token)" in error.message


def test_epochs_make_the_same_budget_possible(model, rows, tmp_path):
    plenty = {**SMALL["training"], "n_tokens": 40_000, "epochs": 1, "batch_tokens": 4096}
    with pytest.raises(CycleFailed, match=r"training\.n_tokens"):
        harvested(spec_of(model, files(rows), training=plenty), tmp_path)
    harvest = harvested(spec_of(model, files(rows), training={**plenty, "epochs": 40}), tmp_path)
    assert 1000 < harvest.survey.tally.n_kept < 40_000


@pytest.mark.parametrize("packing", ["document", "packed"])
@pytest.mark.parametrize("values", [["a"] * 300, ["", None, 7, " "], [], ["one short row"]])
def test_a_text_with_hardly_a_token_ends_in_a_clear_answer(model, tmp_path, packing, values):
    lines = json_lines({"text": value} for value in values)
    file = write_bytes(tmp_path / "rows.jsonl", lines)
    error = refusal(spec_of(model, files(file), data={"packing": packing}), tmp_path)
    assert error.failure == "dataset_exhausted"
    assert "Seen: " in error.message


def test_a_part_without_any_document_is_exhausted_by_name(model, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", passages(1) * 400)
    error = refusal(spec_of(model, files(file)), tmp_path)
    assert error.failure == "dataset_exhausted"
    assert "holds 0 tokens" in error.message


@pytest.mark.parametrize("context_length", [2, 8])
@pytest.mark.parametrize("packing", ["document", "packed"])
def test_the_shortest_contexts_train(model, rows, tmp_path, context_length, packing):
    activations = {"layer": 1, "model_batch_contexts": 512}
    data = {"packing": packing}
    spec = spec_of(model, files(rows), context_length=context_length, data=data, activations=activations)
    run(spec, tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_contexts_longer_than_the_text_train_and_longer_than_the_model_are_refused(
    model, rows, tmp_path, packing
):
    run(spec_of(model, files(rows), context_length=256, data={"packing": packing}), tmp_path / "out")
    error = refusal(
        spec_of(model, files(rows), context_length=257, data={"packing": packing}), tmp_path / "x"
    )
    assert error.failure == "context_too_long"


def test_a_wrong_column_is_told_before_a_model_is_loaded(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("dmsae.cycle_inputs.load_model", None)
    error = refusal(spec_of(model, files(rows, column="body")), tmp_path)
    assert (error.failure, error.param) == ("data_unreadable", "data.text.column")
    assert "'text'" in error.message


def test_a_file_outside_the_allowed_roots_is_refused_before_a_model_is_loaded(
    model, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr("dmsae.cycle_inputs.load_model", None)
    error = refusal(spec_of(model, files(rows)), tmp_path, allowed_roots=[tmp_path])
    assert "allowed root" in error.message


def test_a_cycle_runs_on_stored_objects(model, rows, tmp_path):
    text = {"source": "objects", "objects": [{"key": "uploads/u/rows.jsonl.zst", "etag": "e"}]}
    spec = spec_of(model, text)
    (tmp_path / spec.config.data.text.objects[0].file_name).write_bytes(rows.read_bytes())
    run(spec, tmp_path / "out", inputs_dir=tmp_path)
    same = run(spec_of(model, files(rows)), tmp_path / "same")
    assert same.events["rows_skipped"][1]["null"] == 1
    for name, expected in weights(tmp_path / "same").items():
        assert torch.equal(weights(tmp_path / "out")[name], expected)


def test_a_dataset_of_the_hub_is_asked_for_once_for_all_cycles(model, rows, tmp_path, monkeypatch):
    text = {"source": "hub", "id": "lab/text", "revision": REVISION, "files": ["*.zst"]}
    spec = spec_of(model, text)
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("lab/text", rows.parent, kind="datasets")
        first = harvested(spec, tmp_path)
        assert hub.seen
        hub.seen.clear()
        again = harvested(spec, tmp_path)
        assert not hub.seen
        huggingface_hub.close_session()
    assert again.survey.tally.counts == first.survey.tally.counts
    assert first.n_rows_skipped == {"null": 1, "not_json": 1, "one_token": 1}
    assert first.n_documents == 250


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """What the tiny model gives at layer 1, stored by somebody else."""
    loaded = tiny_loaded()
    ids = torch.randint(3, 512, (600, 32), generator=torch.Generator().manual_seed(0))
    hook = resolve_hook(loaded, layer=1, hook="resid_post")
    resid = run_lower(loaded, hook, input_ids=ids, is_token=torch.ones_like(ids, dtype=torch.bool))
    folder = tmp_path_factory.mktemp("shards").resolve()
    tensors = {"activations": resid, "token_ids": ids, "document_ids": torch.arange(600) // 3}
    for i in range(2):
        half = {name: tensor[i * 300 : (i + 1) * 300].contiguous() for name, tensor in tensors.items()}
        save_file(half, folder / f"{i}.safetensors")
    return folder


def test_a_cycle_trains_on_ready_made_activations(model, shards, tmp_path):
    text = {"source": "activations", "paths": [str(shards / "*.safetensors")]}
    run(spec_of(model, text), tmp_path / "out", allowed_roots=[shards])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_tokens"] == 4096
    error = refusal(spec_of(model, text, activations={"layer": 2}), tmp_path / "x", allowed_roots=[shards])
    assert error.failure == "activations_mismatch"


def test_ready_made_activations_that_end_too_early_are_exhausted(model, shards, tmp_path):
    text = {"source": "activations", "paths": [str(shards / "0.safetensors")]}
    spec = spec_of(model, text, training={**SMALL["training"], "n_tokens": 10**6})
    error = refusal(spec, tmp_path)
    assert error.failure == "dataset_exhausted"
    assert "100 documents" in error.message

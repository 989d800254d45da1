"""How ready-made activations are read."""

import pytest
import torch
from safetensors.torch import save_file

from dmsae.activations import Harvester
from dmsae.config import ActivationConfig
from dmsae.documents import PARTS, Chain
from dmsae.errors import CycleFailed
from dmsae.hooks import resolve_hook, run_lower
from dmsae.sources import StoredActivations
from dmsae.splicing import is_counted
from dmsae.stored_activations import OTHER_PART, StoredShards
from dmsae.windows import HarvestedWindows, Windows
from tests.tiny import tiny_loaded

LENGTH, SPLIT = 16, [0.6, 0.2, 0.2]


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


@pytest.fixture(scope="module")
def reader(loaded):
    config = ActivationConfig(layer=1, model_batch_contexts=7)
    return Harvester(loaded, resolve_hook(loaded, layer=1, hook="resid_post"), config)


def make_ids(n_rows, *, seed=0):
    """Rows of random tokens, some special; each third row ends in padding."""
    ids = torch.randint(1, 512, (n_rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[::3, LENGTH // 2 :] = -1
    return ids


def make_tensors(reader, ids, *, document_ids=None, dtype=torch.float32):
    """What somebody else would have stored: two rows a document."""
    resid = run_lower(reader.loaded, reader.hook, input_ids=ids.clamp(min=0), is_token=ids >= 0)
    document_ids = torch.arange(len(ids)) // 2 if document_ids is None else document_ids
    return {"activations": resid.to(dtype), "token_ids": ids, "document_ids": document_ids}


def write(folder, tensors, *, n_shards=3):
    """Write rows into shards, a document across two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    n_rows = len(tensors["token_ids"])
    for i in range(n_shards):
        rows = slice(i * n_rows // n_shards, (i + 1) * n_rows // n_shards)
        shard = {name: tensor[rows].contiguous() for name, tensor in tensors.items()}
        save_file(shard, folder / f"{i}.safetensors")
    return folder


def shards(folder, *, context_length=LENGTH, roots=None):
    text = StoredActivations(source="activations", paths=[str(folder / "*.safetensors")])
    return StoredShards(text, context_length=context_length, allowed_roots=roots)


def read(folder, reader):
    opened = shards(folder)
    opened.check()
    return opened.read(reader, SPLIT)


def training_tokens(source):
    windows = Windows(source, max_resident_bytes=0)
    contents = [windows.get(i) for i in range(len(windows))]
    dropped = [source.count_dropped(i, n_tokens=len(each.norms)) for i, each in enumerate(contents)]
    return torch.cat([each.tokens.float() for each in contents]), dropped


def harvested_tokens(text, reader):
    return training_tokens(HarvestedWindows(reader, text.parts["training"]))


def refusal(call):
    with pytest.raises(CycleFailed) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("ids_type", [torch.int64, torch.int32])
def test_ready_made_activations_give_the_windows_that_harvesting_gives(tmp_path, reader, ids_type):
    ids = make_ids(700)
    folder = write(tmp_path, make_tensors(reader, ids.to(ids_type)))
    text = read(folder, reader)
    harvested, plainly_dropped = harvested_tokens(text, reader)
    stored, dropped = training_tokens(text.training_windows(reader))
    torch.testing.assert_close(stored, harvested, rtol=2e-3, atol=2e-3)
    assert dropped == plainly_dropped


def test_the_model_is_not_run_over_what_training_reads(tmp_path, reader, monkeypatch):
    folder = write(tmp_path, make_tensors(reader, make_ids(60)))
    text = read(folder, reader)
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    stored, _ = training_tokens(text.training_windows(reader))
    assert len(stored) == text.n_candidates["training"]


def test_every_row_lies_in_the_part_of_its_document_whatever_the_shards(tmp_path, reader):
    ids = make_ids(300)
    text = read(write(tmp_path / "three", make_tensors(reader, ids)), reader)
    one = read(write(tmp_path / "one", make_tensors(reader, ids), n_shards=1), reader)
    n_rows = 0
    for part in PARTS:
        contexts = text.parts[part]
        assert torch.equal(contexts.input_ids, one.parts[part].input_ids)
        assert torch.equal(contexts.document_index, one.parts[part].document_index)
        n_rows += len(contexts.input_ids)
        assert text.n_candidates[part] == reader.count_candidates(contexts) > 0
        rows_of_document = torch.bincount(contexts.document_index[:, 0])
        assert set(rows_of_document.tolist()) <= {0, 2}
    assert n_rows == 300
    assert text.n_documents == 150
    assert text.is_whole


def test_chains_divide_the_training_rows_and_share_all_others(tmp_path, reader):
    folder = write(tmp_path, make_tensors(reader, make_ids(300)))
    whole = read(folder, reader)
    chains = [shards(folder).read(reader, SPLIT, chain=Chain(index, 2)) for index in range(2)]
    for chain in chains:
        for part in ("attribution", "evaluation"):
            assert torch.equal(chain.parts[part].input_ids, whole.parts[part].input_ids)
        tokens, _ = training_tokens(chain.training_windows(reader))
        assert len(tokens) == chain.n_candidates["training"] > 0
    rows = [{tuple(row) for row in chain.parts["training"].input_ids.tolist()} for chain in chains]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == {tuple(row) for row in whole.parts["training"].input_ids.tolist()}


def test_a_document_keeps_its_part_wherever_it_stands_since_its_ids_decide(tmp_path, reader):
    ids = make_ids(120)
    text = read(write(tmp_path / "all", make_tensors(reader, ids)), reader)
    later = read(write(tmp_path / "later", make_tensors(reader, ids[60:])), reader)

    def rows(found, part):
        return {tuple(row) for row in found.parts[part].input_ids.tolist()}

    for part in PARTS:
        assert rows(later, part) <= rows(text, part)


def test_of_packed_rows_each_part_counts_its_own_documents_only(tmp_path, reader):
    """A row that holds documents of several parts is read by each, whole, and counted in pieces."""
    ids = torch.randint(3, 512, (200, LENGTH), generator=torch.Generator().manual_seed(1))
    document_ids = (torch.arange(200 * LENGTH) // 11).view(200, LENGTH)
    text = read(write(tmp_path, make_tensors(reader, ids, document_ids=document_ids)), reader)
    assert sum(text.n_candidates.values()) == ids.numel()
    assert sum(len(contexts.input_ids) for contexts in text.parts.values()) > 200
    whole = Harvester(reader.loaded, reader.hook, ActivationConfig(layer=1, model_batch_contexts=400))
    seen = set()
    for part in PARTS:
        contexts = text.parts[part]
        (batch,) = whole.harvest(contexts)
        foreign = contexts.document_index == OTHER_PART
        assert foreign.any()
        assert torch.equal(batch.is_kept, ~foreign)
        counted = is_counted(batch)
        assert not (counted[:, :-1] & foreign[:, 1:]).any()
        seen |= {tuple(row) for row in contexts.input_ids.tolist()}
        for document in contexts.document_index.unique()[1:].tolist():
            assert (contexts.document_index == document).sum() in (11, 200 * LENGTH % 11)
    assert len(seen) == 200
    stored, dropped = training_tokens(text.training_windows(reader))
    harvested, plainly_dropped = harvested_tokens(text, reader)
    torch.testing.assert_close(stored, harvested, rtol=2e-3, atol=2e-3)
    assert dropped == plainly_dropped
    assert sum(dropped[0]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_read_as_float32_and_are_near_enough(tmp_path, reader, dtype):
    text = read(write(tmp_path, make_tensors(reader, make_ids(60), dtype=dtype)), reader)
    stored, _ = training_tokens(text.training_windows(reader))
    assert stored.dtype == torch.float32


def test_activations_of_another_layer_or_hook_are_refused_before_training(tmp_path, reader, loaded):
    for layer, hook in ((2, "resid_post"), (1, "mlp_out")):
        other = Harvester(loaded, resolve_hook(loaded, layer=layer, hook=hook), ActivationConfig(layer=layer))
        folder = write(tmp_path / f"{layer}{hook}", make_tensors(other, make_ids(60)))
        error = refusal(lambda folder=folder: read(folder, reader))
        assert error.failure == "activations_mismatch"
        assert "0.001 is allowed" in error.message
        assert reader.hook.path in error.message


def test_activations_that_are_shifted_by_one_position_are_refused(tmp_path, reader):
    tensors = make_tensors(reader, make_ids(60))
    tensors["activations"] = tensors["activations"].roll(1, dims=1)
    error = refusal(lambda: read(write(tmp_path, tensors), reader))
    assert error.failure == "activations_mismatch"


def test_an_activation_that_is_not_finite_fails_the_cycle(tmp_path, reader):
    tensors = make_tensors(reader, make_ids(700))
    tensors["activations"][600:] = torch.nan
    folder = write(tmp_path, tensors)

    def read_all():
        text = read(folder, reader)
        training_tokens(text.training_windows(reader))

    error = refusal(read_all)
    assert (error.failure, error.param) == ("non_finite", "data.text")


@pytest.mark.parametrize(
    ("change", "failure", "told"),
    [
        (lambda t: t.pop("document_ids"), "data_unreadable", ["document_ids", "token_ids"]),
        (lambda t: t.update(token_ids=t["token_ids"][:, :8].contiguous()), "data_unreadable", ["(60, 8)"]),
        (lambda t: t.update(activations=t["activations"].double()), "data_unreadable", ["F64", "BF16"]),
        (lambda t: t.update(token_ids=t["token_ids"].float()), "data_unreadable", ["F32"]),
        (
            lambda t: t.update(
                token_ids=t["token_ids"][:, :8].contiguous(), activations=t["activations"][:, :8].contiguous()
            ),
            "activations_mismatch",
            ["data.context_length = 16", "8 tokens"],
        ),
    ],
)
def test_a_shard_of_another_shape_is_refused_without_a_model(tmp_path, reader, change, failure, told):
    tensors = make_tensors(reader, make_ids(60))
    change(tensors)
    write(tmp_path, tensors, n_shards=1)
    error = refusal(lambda: shards(tmp_path).check())
    assert error.failure == failure
    assert all(piece in error.message for piece in told)


def test_another_width_and_ids_beyond_the_vocabulary_are_told_with_both_values(tmp_path, reader):
    tensors = make_tensors(reader, make_ids(60))
    narrow = {**tensors, "activations": tensors["activations"][..., :24].contiguous()}
    error = refusal(lambda: read(write(tmp_path / "narrow", narrow), reader))
    assert (error.failure, "24" in error.message, "32" in error.message) == (
        "activations_mismatch",
        True,
        True,
    )
    tensors["token_ids"][3, 3] = 600
    error = refusal(lambda: read(write(tmp_path / "beyond", tensors), reader))
    assert (error.failure, "600" in error.message, "512" in error.message) == (
        "activations_mismatch",
        True,
        True,
    )


def test_a_document_that_lies_in_two_places_is_refused(tmp_path, reader):
    document_ids = torch.arange(60)
    document_ids[50] = 3
    folder = write(tmp_path, make_tensors(reader, make_ids(60), document_ids=document_ids))
    error = refusal(lambda: read(folder, reader))
    assert error.failure == "data_unreadable"
    assert "document_ids 3" in error.message


def test_a_torn_shard_another_ending_and_a_place_outside_the_roots_are_refused(tmp_path, reader):
    folder = write(tmp_path / "rows", make_tensors(reader, make_ids(60)))
    for error in (
        refusal(lambda: shards(folder, roots=[tmp_path / "elsewhere"]).check()),
        refusal(lambda: shards(tmp_path / "nothing").check()),
    ):
        assert error.failure == "data_unreadable"
    first = folder / "0.safetensors"
    first.write_bytes(first.read_bytes()[:-9])
    assert str(first) in refusal(lambda: shards(folder).check()).message

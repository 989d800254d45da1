"""Claims about GGUF files: the same model and tokenizer, converted once, whoever asks and whoever dies."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from dmsae import gguf_models
from dmsae.config import ActivationConfig
from dmsae.errors import CycleFailed
from dmsae.gguf_models import converted_gguf
from dmsae.models import load_model
from dmsae.sources import BuiltinModel, LocalModel
from tests.tiny import tiny_tokenizer
from tests.tiny_gguf import tiny_qwen2, write_tiny_gguf

pytest.importorskip("gguf")

HOLD_THE_LOCK = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def load(file, cache_dir):
    source = LocalModel(source="local", path=str(file))
    return load_model(source, activations=ActivationConfig(layer=0), device="cpu", cache_dir=cache_dir)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_gguf_file_gives_the_model_and_the_tokenizer_that_it_was_made_of(tmp_path, is_tied):
    original = tiny_qwen2(is_tied=is_tied)
    loaded = load(write_tiny_gguf(tmp_path / "tiny.gguf", original), tmp_path / "cache")
    ids = torch.randint(0, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-5)
    assert loaded.model_type == "qwen2"
    assert loaded.special_ids == (0, 1, 2)
    text = "The lambda form  of a\n\nstatement</s> is été 42."
    expected = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert 1 in expected


def test_a_file_is_converted_once_and_told_apart_by_its_content(tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_qwen2(is_tied=True))
    first = load(file, tmp_path)
    (weights,) = tmp_path.rglob("*.safetensors")
    written_at = weights.stat().st_mtime_ns
    assert load(file.rename(tmp_path / "renamed.gguf"), tmp_path).revision == first.revision
    assert weights.stat().st_mtime_ns == written_at
    other = load(write_tiny_gguf(tmp_path / "other.gguf", tiny_qwen2(is_tied=False)), tmp_path)
    assert other.revision != first.revision


def test_a_file_that_is_no_gguf_or_torn_is_unreadable(tmp_path):
    whole = write_tiny_gguf(tmp_path / "whole.gguf", tiny_qwen2(is_tied=True)).read_bytes()
    for content in (b"GGUF" + bytes(50), b"no such thing", whole[: len(whole) // 2]):
        file = tmp_path / "model.gguf"
        file.write_bytes(content)
        with pytest.raises(CycleFailed, match=str(file)) as caught:
            load(file, tmp_path / "cache")
        assert caught.value.failure == "model_unreadable"
        assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_an_architecture_that_transformers_does_not_read_is_unsupported_by_its_name(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "wavtokenizer-dec")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CycleFailed, match="type wavtokenizer-dec") as caught:
        load(tmp_path / "odd.gguf", tmp_path / "cache")
    assert caught.value.failure == "model_unsupported"


def test_of_two_that_start_cold_one_converts_and_both_get_the_whole_folder(tmp_path, monkeypatch):
    converted, together = [], threading.Barrier(2)

    def convert(_path, folder):
        folder.mkdir()
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")
        converted.append(folder)

    monkeypatch.setattr(gguf_models, "_convert", convert)
    found = []

    def ask():
        together.wait()
        folder = converted_gguf(tmp_path / "model.gguf", "digest", cache_dir=tmp_path)
        found.append((folder, (folder / "config.json").exists()))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(converted) == 1
    assert len(found) == 2
    assert len(set(found)) == 1
    assert found[0][1]


def test_a_worker_that_dies_while_it_converts_holds_nobody_up(tmp_path, monkeypatch):
    (tmp_path / "models" / "digest.unfinished").mkdir(parents=True)
    (tmp_path / "models" / "digest.unfinished" / "model.safetensors").write_bytes(b"half")
    lock = tmp_path / "models" / "digest.lock"
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(gguf_models, "_convert", lambda _path, folder: folder.mkdir())
        found = []
        asking = threading.Thread(
            target=lambda: found.append(converted_gguf(tmp_path / "m.gguf", "digest", cache_dir=tmp_path))
        )
        asking.start()
        asking.join(timeout=0.3)
        assert asking.is_alive()
        holder.kill()
        asking.join(timeout=30)
    assert not asking.is_alive()
    assert list(found[0].iterdir()) == []


@pytest.mark.slow
def test_the_builtin_model_is_read_from_its_gguf_file(tmp_path):
    source = BuiltinModel(source="builtin", name="smollm2-135m")
    loaded = load_model(source, activations=ActivationConfig(layer=10), device="cpu", cache_dir=tmp_path)
    assert (loaded.n_layers, loaded.d_model) == (30, 576)
    ids = torch.tensor([loaded.tokenizer("The capital of France is")["input_ids"]])
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"

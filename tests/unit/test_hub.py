"""The model hub's good and bad answers, from a small hub on loopback."""

import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import dmsae.hub
from dmsae import hub_client
from dmsae.errors import CycleFailed
from dmsae.hub import fetch_model, find_files, open_file
from dmsae.sources import HubModel, HubText
from tests.fake_hub import REVISION, FakeHub, fake_hub

ROOT = Path(__file__).parents[2]
TOKEN = "hf_neverToBeSeenInAnyText0123456789"
MODEL = HubModel(source="hub", id="lab/tiny", revision=REVISION)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FETCH = """
import sys
from pathlib import Path
from dmsae.sources import HubModel
from dmsae.hub import fetch_model
print(fetch_model(HubModel(source="hub", id=sys.argv[1], revision=sys.argv[2]), cache_dir=Path(sys.argv[3])))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model and one dataset, of which no answer is waited for longer than half a second."""
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.5)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add(MODEL.id, write_model(tmp_path / "model"))
        hub.add("lab/text", write_text(tmp_path / "text"), kind="datasets")
        yield hub
        huggingface_hub.close_session()


def write_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS):
        (folder / name).write_bytes(os.urandom(30_000))
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "README.md", "weights.pkl"):
        (folder / name).write_bytes(b"not to be read")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"not to be read")
    return folder


def write_text(folder: Path) -> Path:
    for name in ("train/a-0.jsonl", "train/a-1.jsonl", "train/deep/b.jsonl", "test/c.jsonl"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")
    return folder


def text(*files: str, repo_id: str = "lab/text") -> HubText:
    return HubText(source="hub", id=repo_id, revision=REVISION, files=list(files))


def ask(kind: str, cache_dir: Path) -> CycleFailed:
    """Ask for the model or the dataset and give how that failed; say nothing that holds the token."""
    asking = {
        "models": lambda: fetch_model(MODEL, cache_dir=cache_dir),
        "datasets": lambda: find_files(text("**")),
    }
    with pytest.raises(CycleFailed) as caught:
        asking[kind]()
    told = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in told + repr(vars(caught.value))
    return caught.value


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("hub")
def test_only_config_tokenizer_and_safetensors_are_fetched(tmp_path: Path) -> None:
    folder = fetch_model(MODEL, cache_dir=tmp_path / "cache")
    assert names_in(folder) == sorted(
        ["config.json", "model.safetensors.index.json", "tokenizer.json", *SHARDS]
    )
    assert folder.is_relative_to(tmp_path / "cache" / "hub")
    assert all((folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in SHARDS)


def test_the_token_goes_to_the_hub_and_not_to_the_storage_it_names(hub: FakeHub, tmp_path: Path) -> None:
    fetch_model(MODEL, cache_dir=tmp_path / "cache")
    assert {(seen.host, seen.has_token) for seen in hub.seen} == {("127.0.0.1", True), ("localhost", False)}


def test_a_second_load_asks_nobody(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_model(MODEL, cache_dir=tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    n_seen = len(hub.seen)
    assert fetch_model(MODEL, cache_dir=tmp_path / "cache") == first
    assert len(hub.seen) == n_seen


@pytest.mark.usefixtures("hub")
def test_a_model_without_safetensors_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in (*SHARDS, "consolidated.safetensors"):
        (tmp_path / "model" / name).unlink()
    failure = ask("models", tmp_path / "cache")
    assert (failure.failure, failure.param) == ("model_unreadable", "model.id")
    assert ".safetensors" in failure.message


REFUSALS: list[tuple[int, dict[str, str], str]] = [
    (401, {"X-Error-Code": "RepoNotFound"}, "hub_unauthorized"),
    (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "hub_unauthorized"),
    (403, {"X-Error-Code": "GatedRepo"}, "hub_forbidden"),
    (403, {}, "hub_forbidden"),
    (404, {"X-Error-Code": "RepoNotFound"}, "hub_not_found"),
    (429, {"Retry-After": "300"}, "hub_rate_limited"),
    (429, {"ratelimit": '"api";r=0;t=280'}, "hub_rate_limited"),
    (500, {}, "hub_unreachable"),
]


@pytest.mark.parametrize("kind", ["models", "datasets"])
@pytest.mark.parametrize(("status", "headers", "code"), REFUSALS)
def test_each_refusal_has_its_own_code(
    hub: FakeHub, tmp_path: Path, kind: str, status: int, headers: dict[str, str], code: str
) -> None:
    hub.repositories[kind, MODEL.id if kind == "models" else "lab/text"].refusal = (status, headers)
    failure = ask(kind, tmp_path / "cache")
    section = "model" if kind == "models" else "data.text"
    assert (failure.failure, failure.param) == (code, f"{section}.id")
    assert failure.message.startswith(f"{section}.id = 'lab/")
    assert failure.is_retryable == (code in ("hub_rate_limited", "hub_unreachable"))


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_hub_that_keeps_quiet_or_is_gone_is_unreachable(
    hub: FakeHub, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[kind, MODEL.id if kind == "models" else "lab/text"].hangs = True
    failure = ask(kind, tmp_path / "cache")
    assert failure.failure == "hub_unreachable"
    assert "did not answer within 0.3 s" in failure.message
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    failure = ask(kind, tmp_path / "cache")
    assert failure.failure == "hub_unreachable"
    assert "refused" in failure.message


def test_the_waits_end_within_half_a_minute() -> None:
    longest_pause_s = 8
    assert hub_client.PATIENCE_S + longest_pause_s + hub_client.TIMEOUT_S < 32
    quiet_s = hub_client.TIMEOUT_S + 1 + hub_client.TIMEOUT_S
    assert hub_client.PATIENCE_S < quiet_s < 25


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_missing_revision_is_named(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    hub.repositories[kind, MODEL.id if kind == "models" else "lab/text"].revision = "f" * 40
    failure = ask(kind, tmp_path / "cache")
    assert failure.failure == "hub_not_found"
    assert failure.param == ("model.revision" if kind == "models" else "data.text.revision")


def test_a_refusal_says_what_to_do(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    repository = hub.repositories["models", MODEL.id]
    repository.refusal = (401, {})
    assert "asks for a token (401); set HF_TOKEN" in ask("models", tmp_path / "cache").message
    repository.refusal = (403, {})
    message = ask("models", tmp_path / "cache").message
    assert "accept the conditions on 127.0.0.1" in message
    assert "/lab/tiny and set HF_TOKEN" in message


def test_another_server_is_not_taken_for_a_hub(hub: FakeHub, tmp_path: Path) -> None:
    for kind in ("models", "datasets"):
        repository = hub.repositories[kind, MODEL.id if kind == "models" else "lab/text"]
        repository.refusal = (200, {"Content-Type": "text/html"})
        failure = ask(kind, tmp_path / "cache")
        assert failure.failure == "hub_unreachable"
        assert "HF_ENDPOINT" in failure.message


def test_a_short_pause_of_the_hub_is_waited_out(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE_S", 10.0)
    hub.once[SHARDS[0]] = (503, {})
    hub.once["config.json"] = (429, {"Retry-After": "0"})
    folder = fetch_model(MODEL, cache_dir=tmp_path / "cache")
    assert (folder / SHARDS[0]).read_bytes() == (tmp_path / "model" / SHARDS[0]).read_bytes()
    assert not hub.once


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE_S", 10.0)
    one_piece, shard = 10 << 20, tmp_path / "model" / SHARDS[0]
    shard.write_bytes(os.urandom(one_piece + 2_000_000))
    hub.cuts[SHARDS[0]] = one_piece + 1_000_000
    folder = fetch_model(MODEL, cache_dir=tmp_path / "cache")
    assert (folder / SHARDS[0]).read_bytes() == shard.read_bytes()
    assert [seen.byte_range for seen in hub.stored(SHARDS[0])] == [None, f"bytes={one_piece}-"]


def start_fetching(hub: FakeHub, cache_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", FETCH, MODEL.id, REVISION, str(cache_dir)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(hub: FakeHub, name: str) -> None:
    deadline = time.monotonic() + 30
    while not hub.asked_for(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_that_start_cold_fetch_once_and_both_find_it_whole(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.hold(SHARDS[1])
    both = [start_fetching(hub, tmp_path / "cache") for _ in range(2)]
    wait_for(hub, SHARDS[1])
    time.sleep(1.0)
    hub.release(SHARDS[1])
    said = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({out for out, _ in said}) == 1
    folder = Path(said[0][0].strip())
    assert all((folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in SHARDS)
    assert [len(hub.stored(name)) for name in SHARDS] == [
        1,
        1,
    ]


def test_a_killed_download_keeps_what_was_whole_and_leaves_nothing_torn(hub: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.hold(SHARDS[1])
    process = start_fetching(hub, cache)
    wait_for(hub, SHARDS[1])
    blobs = cache / "hub" / "models--lab--tiny" / "blobs"
    deadline = time.monotonic() + 30
    while len([path for path in blobs.iterdir() if path.suffix != ".incomplete"]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert list(blobs.glob("*.incomplete"))
    hub.release(SHARDS[1])
    hub.seen.clear()
    folder = fetch_model(MODEL, cache_dir=cache)
    assert all((folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in SHARDS)
    assert not list(blobs.glob("*.incomplete"))
    assert not hub.asked_for(SHARDS[0])


def test_a_file_that_a_power_failure_tore_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch_model(MODEL, cache_dir=tmp_path / "cache")
    (folder / SHARDS[0]).resolve().write_bytes(b"")
    hub.seen.clear()
    fetch_model(MODEL, cache_dir=tmp_path / "cache")
    assert (folder / SHARDS[0]).read_bytes() == (tmp_path / "model" / SHARDS[0]).read_bytes()
    assert not hub.asked_for(SHARDS[1])


def test_a_worker_whose_download_stands_still_is_not_waited_for(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hold(SHARDS[1])
    process = start_fetching(hub, tmp_path / "cache")
    try:
        wait_for(hub, SHARDS[1])
        monkeypatch.setattr(dmsae.hub, "LOCK_POLL_S", 0.1)
        monkeypatch.setattr(dmsae.hub, "STALLED_S", 0.3)
        failure = ask("models", tmp_path / "cache")
        assert failure.failure == "hub_unreachable"
        assert "another worker" in failure.message
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["train/*.jsonl"], ["train/a-0.jsonl", "train/a-1.jsonl"]),
        (["train/**/*.jsonl"], ["train/a-0.jsonl", "train/a-1.jsonl", "train/deep/b.jsonl"]),
        (
            ["test/c.jsonl", "train/a-?.jsonl", "**/a-0.jsonl"],
            ["test/c.jsonl", "train/a-0.jsonl", "train/a-1.jsonl"],
        ),
    ],
)
@pytest.mark.usefixtures("hub")
def test_globs_find_files_in_order_and_each_once(patterns: list[str], found: list[str]) -> None:
    assert find_files(text(*patterns)) == found


@pytest.mark.parametrize("pattern", ["nothing/*.jsonl", "train", "a**/b", "*.jsonl"])
@pytest.mark.usefixtures("hub")
def test_a_glob_that_finds_nothing_names_what_there_is(pattern: str) -> None:
    with pytest.raises(CycleFailed) as caught:
        find_files(text("train/a-0.jsonl", pattern))
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "data.text.files.1")
    assert repr(pattern) in caught.value.message
    assert "**" in pattern or "test/c.jsonl" in caught.value.message


def write_large(folder: Path) -> dict[str, list[str]]:
    """Write 2000 documents of noise as parquet in ten row groups and as jsonl.zst."""
    documents = [os.urandom(300).hex() for _ in range(2000)]
    noise = [os.urandom(300).hex() for _ in range(2000)]
    table = pa.table({"text": documents, "other": noise})
    pq.write_table(table, folder / "rows.parquet", row_group_size=200, compression="none")
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (folder / "rows.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return {"text": documents}


def test_parquet_and_jsonl_zst_are_streamed_in_pieces(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmsae.hub, "BLOCK_BYTES", 16_384)
    documents = write_large(tmp_path / "text")["text"]
    with open_file(text("*"), "rows.parquet") as file, pq.ParquetFile(file) as parquet:
        assert parquet.read_row_group(3, columns=["text"])["text"].to_pylist() == documents[600:800]
    fetched = sum(length(seen.byte_range) for seen in hub.stored("rows.parquet"))
    assert fetched < (tmp_path / "text" / "rows.parquet").stat().st_size / 2
    with open_file(text("*"), "rows.jsonl.zst") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file))
        assert [json.loads(line)["text"] for line in lines] == documents
    pieces = [length(seen.byte_range) for seen in hub.stored("rows.jsonl.zst")]
    assert len(pieces) > 3
    assert max(pieces) < 200_000


def length(byte_range: str | None) -> int:
    assert byte_range is not None
    start, end = byte_range.removeprefix("bytes=").split("-")
    return int(end) - int(start) + 1


def test_a_file_that_is_not_there_and_a_hub_that_goes_away_while_reading_have_their_codes(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmsae.hub, "BLOCK_BYTES", 4096)
    write_large(tmp_path / "text")
    with pytest.raises(CycleFailed) as caught, open_file(text("*"), "none.parquet"):
        pass
    assert caught.value.failure == "hub_not_found"
    assert "no such file" in caught.value.message

    def read_until_it_is_gone() -> Any:
        with open_file(text("*"), "rows.parquet") as file:
            file.read(10)
            hub.repositories["datasets", "lab/text"].refusal = (500, {})
            return pq.read_table(file)

    with pytest.raises(CycleFailed) as caught:
        read_until_it_is_gone()
    assert (caught.value.failure, caught.value.param) == ("hub_unreachable", "data.text.id")


def test_a_repository_of_an_impossible_name_is_not_found(tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"id": "a/b--c"})
    with pytest.raises(CycleFailed) as caught:
        fetch_model(model, cache_dir=tmp_path)
    assert caught.value.failure == "hub_not_found"

"""Bytes go in, come out the same, and are handed out by links."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from pydantic import HttpUrl

from dmsae.errors import NotFound, Unavailable
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings


@pytest.fixture
def store(settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(settings)
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


class Beginning(BaseHTTPRequestHandler):
    """A store that lists what it holds, and reads it from the third time on."""

    n_reads = 0

    def do_GET(self) -> None:
        is_list = "list-type" in self.path
        type(self).n_reads += not is_list
        listed = b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"
        body = listed if is_list else b"x"
        self.send_response(500 if not is_list and self.n_reads < 3 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_that_lists_what_it_cannot_read_yet_does_not_give_bytes(settings: Settings) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Beginning) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = HttpUrl(f"http://127.0.0.1:{server.server_port}")
        store = ObjectStore(settings.model_copy(update={"s3_endpoint_url": url}))
        assert [store.gives_bytes() for _ in range(3)] == [False, False, True]
        store.close()
        server.shutdown()


def test_a_store_gives_bytes_where_it_holds_some_or_has_nothing_to_give(
    store: ObjectStore, settings: Settings, file: Path
) -> None:
    store.put_file(prefix_of(file) + "a.bin", file)
    assert store.gives_bytes()
    elsewhere = ObjectStore(settings.model_copy(update={"s3_bucket": "no-such-bucket"}))
    assert elsewhere.gives_bytes()
    elsewhere.close()


def prefix_of(path: Path) -> str:
    return f"tests/{path.parent.name}/"


def test_a_stored_file_comes_back_byte_for_byte(store: ObjectStore, file: Path) -> None:
    stored = store.put_file(prefix_of(file) + "a.bin", file)
    target = file.with_name("back.bin")
    store.get_file(stored.key, target, sha256=stored.sha256)
    assert target.read_bytes() == file.read_bytes()
    assert stored.size_bytes == file.stat().st_size


def test_other_bytes_than_expected_are_refused_and_leave_no_file(store: ObjectStore, file: Path) -> None:
    stored = store.put_file(prefix_of(file) + "a.bin", file)
    target = file.with_name("back.bin")
    with pytest.raises(Unavailable, match="other bytes"):
        store.get_file(stored.key, target, sha256="0" * 64)
    assert not target.exists()
    with pytest.raises(NotFound):
        store.get_file(prefix_of(file) + "none", target, sha256=stored.sha256)


def test_a_presigned_link_serves_the_file_under_its_name_on_the_public_host(
    settings: Settings, store: ObjectStore, file: Path
) -> None:
    key = store.put_file(prefix_of(file) + "a.bin", file).key
    public = str(settings.s3_endpoint_url).replace("127.0.0.1", "localhost")
    elsewhere = ObjectStore(settings.model_copy(update={"s3_public_endpoint_url": public}))
    link = elsewhere.presign(key, filename='evil"\r\nname.bin')
    elsewhere.close()
    assert link.startswith("http://localhost:")
    answer = httpx.get(link, trust_env=False)
    assert answer.content == file.read_bytes()
    assert 'filename="evil___name.bin"' in answer.headers["Content-Disposition"]
    assert httpx.get(link.split("?")[0], trust_env=False).status_code == 403


def test_deleting_a_prefix_leaves_its_neighbours(store: ObjectStore, file: Path) -> None:
    prefix = prefix_of(file)
    for name in ("1/a", "1/b", "10/a"):
        store.put_file(prefix + name, file)
    assert store.delete_prefix(prefix + "1/") == 2
    assert store.delete_prefix(prefix) == 1
    with pytest.raises(ValueError, match="must name a folder"):
        store.delete_prefix(prefix + "1")


@pytest.mark.parametrize(
    "change",
    [{"s3_endpoint_url": "http://127.0.0.1:1"}, {"s3_access_key": "wrong"}, {"s3_bucket": "none"}],
)
def test_a_store_that_is_away_or_refuses_is_unavailable(settings: Settings, change: dict[str, str]) -> None:
    store = ObjectStore(settings.model_copy(update=change))
    with pytest.raises(Unavailable):
        store.check()
    store.close()


UPLOAD = """
import sys
from pathlib import Path
from dmsae.allocator import peak_memory_bytes
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import load_settings
path = Path(sys.argv[1])
store = ObjectStore(load_settings())
before = peak_memory_bytes()
stored = store.put_file("tests/large/a.bin", path)
store.get_file(stored.key, path.with_name("back.bin"), sha256=stored.sha256)
print((peak_memory_bytes() - before) // 2**20)
store.delete_prefix("tests/large/")
"""


def test_a_large_file_needs_little_memory_both_ways(stack_env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, str(path)], env=stack_env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150


def test_a_put_link_takes_one_file_of_one_size_once(store: ObjectStore, file: Path) -> None:
    key, content = prefix_of(file) + "put.txt", b"five!"
    link = store.presign_put(key, size_bytes=len(content), content_type="text/plain")

    def put(body: bytes, **headers: str) -> int:
        return httpx.put(link.url, content=body, headers=headers, trust_env=False).status_code

    signed = {"If-None-Match": "*", "Content-Type": "text/plain"}
    assert link.headers == {**signed, "Content-Length": "5"}
    assert put(b"longer", **signed) == 403
    assert put(content, **{"Content-Type": "text/plain"}) == 403
    with pytest.raises(NotFound):
        store.describe(key)
    assert put(content, **signed) == 200
    before = store.describe(key)
    assert put(b"other", **signed) == 412
    assert store.describe(key) == before
    assert before.size_bytes == 5
    store.delete(key)
    store.delete(key)
    with pytest.raises(NotFound):
        store.describe(key)


def test_other_bytes_have_another_etag(store: ObjectStore, file: Path) -> None:
    key = store.put_file(prefix_of(file) + "a.bin", file).key
    first = store.describe(key)
    file.write_bytes(file.read_bytes()[::-1])
    store.put_file(key, file)
    assert store.describe(key).etag != first.etag
    assert store.describe(key).size_bytes == first.size_bytes


def test_only_uploads_in_parts_that_began_long_ago_are_abandoned(store: ObjectStore, file: Path) -> None:
    prefix = prefix_of(file)
    store._client.create_multipart_upload(Bucket=store._bucket, Key=prefix + "a")
    time.sleep(1.2)
    assert store.abandon_uploads(prefix, older_than_s=3600) == 0
    assert store.abandon_uploads(prefix, older_than_s=0.1) == 1
    assert store.abandon_uploads(prefix) == 0


def test_a_file_that_is_stored_again_leaves_no_parts_of_an_earlier_try(
    store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * (17 << 20))
    key = prefix_of(path) + "a"
    for name in (key, key + "b"):
        store._client.create_multipart_upload(Bucket=store._bucket, Key=name)
    store.put_file(key, path)
    left = store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=prefix_of(path))["Uploads"]
    assert [upload["Key"] for upload in left] == [key + "b"]
    assert store.abandon_uploads(prefix_of(path)) == 1


def test_what_is_under_way_breaks_off_between_two_pieces_and_leaves_no_parts(
    store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * (40 << 20))
    key = prefix_of(path) + "a"
    stored, n_asked = store.put_file(key + "b", path), 0

    def stops_soon() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked > 20

    with store.broken_off_when(stops_soon), pytest.raises(Unavailable):
        store.put_file(key, path)
    assert n_asked < 60
    n_asked = 0
    with store.broken_off_when(stops_soon), pytest.raises(Unavailable):
        store.get_file(stored.key, tmp_path / "back.bin", sha256=stored.sha256)
    assert [each.name for each in tmp_path.iterdir()] == ["large.bin"]
    assert store.abandon_uploads(prefix_of(path)) == 0
    assert store.find(key) is None

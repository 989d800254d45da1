"""A small model hub on loopback: lists and serves folders as repositories, as huggingface_hub asks for them.

Large files are answered as the real hub does: by sending the client on to a storage host, here `localhost`.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".parquet", ".zst")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>.+?)/tree/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"(?P<kind>/datasets)?/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
STORAGE = re.compile(r"/storage/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Seen:
    """One request that the hub received."""

    method: str
    path: str
    host: str
    byte_range: str | None
    has_token: bool


@dataclass
class Repository:
    folder: Path
    revision: str = REVISION
    refusal: tuple[int, dict[str, str]] | None = None
    hangs: bool = False
    needs_token: bool = False

    def files(self) -> dict[str, Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


@dataclass
class FakeHub:
    """What the hub holds, how it misbehaves, and what it was asked."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    """Bytes after which the next answer with this file breaks off."""
    holds: dict[str, threading.Event] = field(default_factory=dict)
    """Files of which half is sent, and the rest once told."""
    once: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """What the next request for this file's bytes gets instead."""
    is_closing: threading.Event = field(default_factory=threading.Event)

    def add(self, repo_id: str, folder: Path, *, kind: str = "models") -> Repository:
        """Serve a folder as a repository of kind `models` or `datasets`."""
        return self.repositories.setdefault((kind, repo_id), Repository(folder))

    def hold(self, name: str) -> None:
        """Send half of a file, and the rest once it is released."""
        self.holds[name] = threading.Event()

    def release(self, name: str) -> None:
        """Send the rest of a file that is held."""
        self.holds[name].set()

    def stored(self, name: str) -> list[Seen]:
        """Give the requests for one file's bytes that reached the storage host."""
        return [seen for seen in self.asked_for(name) if seen.host == "localhost"]

    def asked_for(self, name: str, *, method: str = "GET") -> list[Seen]:
        """Give the requests for one file's bytes."""
        return [seen for seen in self.seen if seen.method == method and seen.path.endswith(f"/{name}")]


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub on a free loopback port."""
    hub = FakeHub()
    server = _Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.is_closing.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server on a free port of loopback that serves one hub."""

    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        host = self.headers["Host"].split(":")[0]
        byte_range = self.headers.get("Range")
        self.hub.seen.append(Seen(self.command, path, host, byte_range, "Authorization" in self.headers))
        if found := API.fullmatch(path):
            self.answer_listing(**found.groupdict())
        elif found := RESOLVE.fullmatch(path):
            asked = found.groupdict()
            kind = "datasets" if asked.pop("kind") else "models"
            self.answer_file(kind=kind, **asked)
        elif found := STORAGE.fullmatch(path):
            asked = found.groupdict()
            file = self.hub.repositories[asked["kind"], asked["id"]].files()[asked["path"]]
            self.send_bytes(file, asked["path"], {})
        else:
            self.send(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def repository(self, kind: str, repo_id: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get((kind, repo_id))
        if found is not None and found.hangs:
            self.hub.is_closing.wait(60)
        if found is None:
            self.send(404, {"X-Error-Code": "RepoNotFound"})
        elif found.refusal is not None:
            self.send(*found.refusal)
        elif found.needs_token and "Authorization" not in self.headers:
            self.send(401, {"X-Error-Code": "RepoNotFound"})
        elif found.revision != revision:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def answer_listing(self, kind: str, id: str, revision: str) -> None:
        if (found := self.repository(kind, id, revision)) is None:
            return
        listed: list[dict[str, Any]] = []
        for name, file in found.files().items():
            size, oid = file.stat().st_size, hashlib.sha1(name.encode()).hexdigest()  # noqa: S324
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": oid}
            if name.endswith(LARGE):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
            listed.append(entry)
        self.send(200, {"Content-Type": "application/json"}, json.dumps(listed).encode())

    def answer_file(self, kind: str, id: str, revision: str, path: str) -> None:
        if (found := self.repository(kind, id, revision)) is None:
            return
        file = found.files().get(path)
        if file is None:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": revision})
            return
        etag = hashlib.sha256(file.read_bytes()).hexdigest()
        headers = {"X-Repo-Commit": revision, "ETag": f'"{etag}"'}
        if path.endswith(LARGE):
            port = self.server.server_address[1]
            linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(file.stat().st_size)}
            location = f"http://localhost:{port}/storage/{kind}/{id}/{path}"
            self.send(302, {**headers, **linked, "Location": location})
        else:
            self.send_bytes(file, path, headers)

    def send_bytes(self, file: Path, path: str, headers: dict[str, str]) -> None:
        if self.command == "GET" and (other := self.hub.once.pop(path, None)) is not None:
            self.send(*other)
            return
        body, status = file.read_bytes(), 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            body, status = body[start : end + 1], 206
        self.send(status, headers, body, path)

    def send(self, status: int, headers: dict[str, str], body: bytes = b"", path: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if (n_bytes := self.hub.cuts.pop(path, None)) is not None:
            self.wfile.write(body[:n_bytes])
            self.close_connection = True
            return
        if (told := self.hub.holds.get(path)) is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            while not told.is_set() and not self.hub.is_closing.is_set():
                time.sleep(0.01)
            body = body[len(body) // 2 :]
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        return

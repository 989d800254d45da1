"""A server that is told of ends of jobs, by plain HTTP or by TLS."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """Keeps what it is told, and answers as it is set to."""

    daemon_threads = True

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self._is_secure = trust is not None
        if trust is not None:
            self.socket = trust.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        port = self.server_address[1]
        return f"https://localhost:{port}/in" if self._is_secure else f"http://127.0.0.1:{port}/in"

    def handle_error(self, *_: Any) -> None:
        """A client that does not trust this server goes away: that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(trust: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Receive for as long as the block lasts."""
    with Receiver(trust) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

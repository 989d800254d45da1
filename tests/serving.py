"""The API on a real socket: what a client sees, byte for byte."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import uvicorn

from api.main import create_app
from dmsae.service.settings import Settings


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[httpx.Client]:
    """Serve the API on a free loopback port, and give a client of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()
        assert not thread.is_alive()

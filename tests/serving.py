"""The API on a real socket: what a client sees, byte for byte."""

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator

import httpx
import psycopg
import uvicorn

from api.main import create_app
from dmsae.service.settings import Settings
from tests.conftest import TEMPLATE, RunningServices


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


@contextlib.contextmanager
def fresh_database(services: RunningServices) -> Iterator[str]:
    """A migrated database for as long as a module needs it."""
    name = f"module_{uuid.uuid4().hex}"
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield services.parts.postgres.url(name)
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

"""Serve the API: `python -m api`."""

import contextlib
import socket
import sys

import structlog
import uvicorn

from api.main import create_app
from api.security import is_loopback
from dmsae.errors import DmsaeError, Forbidden, Unavailable
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.event_hub import EventHub
from dmsae.service.logs import configure_logs
from dmsae.service.queue import check_broker
from dmsae.service.settings import Settings, load_settings

log = structlog.get_logger()


def main() -> int:
    """Serve until told to stop; refuse a network or a broker under which no promise could be kept."""
    settings = load_settings()
    configure_logs(settings.log_level)
    try:
        refuse_open_network(settings)
        refuse_evicting_broker(settings)
    except DmsaeError as error:
        log.error("api_refused_to_start", code=error.code, reason=error.message)
        return 1
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    with contextlib.suppress(KeyboardInterrupt):
        ApiServer(config, app.state.parts.hub).run()
    return 0


class ApiServer(uvicorn.Server):
    """Lets event streams and long-polls end first when it is told to stop: else they would be waited for."""

    def __init__(self, config: uvicorn.Config, hub: EventHub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and answer what is left."""
        self._hub.end_streams()
        await super().shutdown(sockets)


def refuse_open_network(settings: Settings) -> None:
    """Refuse to listen on an address that other machines reach while no API key is required.

    Raises:
        Forbidden: no key was ever made.
        Unavailable: whether there is one cannot be asked.
    """
    if is_loopback(settings.host) or settings.require_key:
        return
    database = Database(settings.database_url.get_secret_value(), wake_up=str)
    try:
        if not database.run(keys.has_keys):
            raise Forbidden(
                f"host = {settings.host!r}: without any API key only loopback is allowed; make one first "
                "(`dmsae keys create OWNER`), or set DMSAE_HOST=127.0.0.1.",
                param="host",
            )
    finally:
        database.dispose()


def refuse_evicting_broker(settings: Settings) -> None:
    """Refuse a broker that may drop wake-ups; one that is away is waited for.

    Raises:
        InvalidConfig: its `maxmemory-policy` evicts any key.
    """
    try:
        check_broker(settings.broker_url)
    except Unavailable as error:
        log.warning("api_starts_without_broker", reason=error.message)


if __name__ == "__main__":
    sys.exit(main())

"""Clients of the HTTP API, for scripts and the command line; they need the base install only."""

from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from dmsae.client.calls import Answer, Request, pages
from dmsae.client.figures import Figures
from dmsae.client.latents import Cores, Latents
from dmsae.client.probes import Probes
from dmsae.client.profiles import find_api
from dmsae.client.resources import Distillations, Groups, Jobs, Uploads
from dmsae.client.rows import AsyncRows, Rows
from dmsae.client.senders import AsyncSender, Sender
from dmsae.client.watching import follow, follow_async

__all__ = ["Answer", "AsyncClient", "Client"]

DEFAULT_URL = "http://127.0.0.1:8000"


class WatchableJobs(Jobs[Sender]):
    """Jobs of every kind, and their events as they happen."""

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Answer]:
        """Go through events as they happen, each once, until the job has ended; breaks are gone over.

        Raises:
            NotFound: there is no such job.
            Unavailable: the API does not come back.
        """
        return follow(self._sender.http, job_id, after=after)


class AsyncWatchableJobs(Jobs[AsyncSender]):
    """The same, awaited."""

    def watch(self, job_id: str, *, after: int = 0) -> AsyncIterator[Answer]:
        """Go through events as they happen, each once, until the job has ended; breaks are gone over.

        Raises:
            NotFound: there is no such job.
            Unavailable: the API does not come back.
        """
        return follow_async(self._sender.http, job_id, after=after)


class Client:
    """A connection to one API, by default that of the environment or of a profile; close it, or use `with`.

    Raises:
        BadRequest: a URL or key that cannot be one.
        DmsaeError: the file of profiles cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        profile: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        api = find_api(url, key, profile=profile)
        self._sender = Sender(api.url or DEFAULT_URL, api.key, timeout_s)
        self.distillations = Distillations(self._sender)
        self.jobs = WatchableJobs(self._sender)
        self.groups = Groups(self._sender)
        self.probes = Probes(self._sender)
        self.uploads = Uploads(self._sender)
        self.latents = Latents(self._sender)
        self.cores = Cores(self._sender)
        self.figures = Figures(self._sender)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._sender.http.close()

    def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, query: Any = None
    ) -> Answer:
        """Ask once and give the answer; one without a body is empty.

        Raises:
            InvalidConfig: settings were refused; `problems` names field, value and rule of each.
            Unavailable: the API, or a part that it needs, does not answer.
            VersionMismatch: the server is of a version that this client does not understand.
            DmsaeError: any other refusal, as the class of its kind; `fields["code"]` is the API's code.
        """
        return self._sender.ask(Request(method, path, body, query))

    def pages(self, path: str, **query: Any) -> Rows:
        """Go through all items of a paged list."""
        return self._sender.rows(pages(path, query))


class AsyncClient:
    """The same for asyncio: each call gives an awaitable, each list an asynchronous iterator.

    Raises:
        BadRequest: a URL or key that cannot be one.
        DmsaeError: the file of profiles cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        profile: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        api = find_api(url, key, profile=profile)
        self._sender = AsyncSender(api.url or DEFAULT_URL, api.key, timeout_s)
        self.distillations = Distillations(self._sender)
        self.jobs = AsyncWatchableJobs(self._sender)
        self.groups = Groups(self._sender)
        self.probes = Probes(self._sender)
        self.uploads = Uploads(self._sender)
        self.latents = Latents(self._sender)
        self.cores = Cores(self._sender)
        self.figures = Figures(self._sender)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._sender.http.aclose()

    async def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, query: Any = None
    ) -> Answer:
        """Ask once and give the answer, as `Client.request` does."""
        return await self._sender.ask(Request(method, path, body, query))

    def pages(self, path: str, **query: Any) -> AsyncRows:
        """Go through all items of a paged list."""
        return self._sender.rows(pages(path, query))

"""What the client asks, described once as values; `senders.py` sends them, at once or asynchronously.

A call is a generator: it yields what is to be done, is sent what came of it, and returns the call's answer.
`call` makes a method of it that returns the answer on a `Client` and an awaitable on an `AsyncClient`;
`listing` makes one that returns rows to go through.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from dmsae.errors import DmsaeError

if TYPE_CHECKING:
    import httpx

    from dmsae.client.rows import AsyncRows, Rows
    from dmsae.client.senders import AsyncSender, Sender

Answer = dict[str, Any]
"""A JSON object as the API documents it under `/docs`."""

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Sender | AsyncSender")

PAGE_SIZE = 200


@dataclass(frozen=True)
class Request:
    """One request of the API; it is sent its answer, empty where that has no body."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """A file of the API's own making, such as a figure; its bytes come back."""

    path: str
    query: Mapping[str, Any]


@dataclass(frozen=True)
class Pause:
    """So long nothing."""

    seconds: float


@dataclass(frozen=True)
class Put:
    """A file to be put under a presigned link; the status comes back."""

    url: str
    path: Path
    size_bytes: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fetch:
    """What is still missing of a file, from a presigned link; `Fetched` comes back.

    The bytes are appended to `part`; a store that does not give a range begins it anew.
    """

    url: str
    part: Path
    size_bytes: int
    tell: Callable[[int], None]
    """Is told after each piece how many bytes the part has."""

    @property
    def n_bytes(self) -> int:
        """How much of it is there."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def headers(self) -> dict[str, str]:
        """Ask for the rest, as it is stored."""
        rest = {"Range": f"bytes={self.n_bytes}-"} if self.n_bytes else {}
        return {"Accept-Encoding": "identity", **rest}

    def open_part(self, answer: httpx.Response) -> BinaryIO:
        """Open the part where the bytes of an answer belong: at its end, or at its beginning."""
        given = answer.headers.get("content-range", "")
        is_rest = answer.status_code == 206 and given.startswith(f"bytes {self.n_bytes}-")
        return self.part.open("ab" if is_rest else "wb")

    def is_full_with(self, part: BinaryIO, piece: bytes) -> bool:
        """Write a piece, and tell whether the file ought to have ended: no store may fill the disk."""
        part.write(piece)
        self.tell(part.tell())
        return part.tell() > self.size_bytes


def unwritable(path: Path, error: OSError) -> DmsaeError:
    """Say of a disk in one sentence what it did not do."""
    return DmsaeError(f"{path}: cannot be written: {error.strerror}.")


@dataclass(frozen=True)
class Fetched:
    """What came of it: a status of the store, or why the connection broke."""

    status: int | None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a listing."""

    value: Answer


Step = Request | Read | Pause | Put | Fetch
Steps = Generator[Step, Any, T]
RowSteps = Generator[Step | Row, Any, None]


class Resource(Generic[S]):
    """Calls about one kind of thing, for one kind of sender."""

    def __init__(self, sender: S) -> None:
        self._sender = sender


class call(Generic[P, T]):
    """A method made of steps: it returns their result, or on an asynchronous client an awaitable of it."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: Resource[Sender], owner: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, resource: Resource[AsyncSender], owner: type[Any]
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind it to a client."""
        if resource is None:
            return self

        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resource._sender.run(self.steps(resource, *args, **kwargs))

        return update_wrapper(bound, self.steps)


class listing(Generic[P]):
    """A method made of steps that give rows: it returns `Rows`, or on an asynchronous client `AsyncRows`."""

    def __init__(self, steps: Callable[Concatenate[Any, P], RowSteps]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, resource: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, resource: Resource[Sender], owner: type[Any]) -> Callable[P, Rows]: ...
    @overload
    def __get__(self, resource: Resource[AsyncSender], owner: type[Any]) -> Callable[P, AsyncRows]: ...
    def __get__(self, resource: Any, owner: type[Any]) -> Any:
        """Bind it to a client."""
        if resource is None:
            return self

        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            return resource._sender.rows(self.steps(resource, *args, **kwargs))

        return update_wrapper(bound, self.steps)


def pages(path: str, query: Mapping[str, Any] | None = None) -> RowSteps:
    """Go through all items of a paged list."""
    cursor: str | None = None
    while True:
        asked = {**(query or {}), "cursor": cursor, "limit": PAGE_SIZE}
        page = yield Request("GET", path, query=asked)
        for item in page["items"]:
            yield Row(item)
        cursor = page["next_cursor"]
        if cursor is None:
            return

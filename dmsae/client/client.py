"""A small client of the HTTP API, for scripts and the command line; needs the base install only."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dmsae.client.watching import Refused, follow
from dmsae.client.latents import Cores, Latents
from dmsae.errors import (
    BadRequest,
    Conflict,
    DmsaeError,
    FieldProblem,
    Forbidden,
    InvalidConfig,
    NotFound,
    Unauthorized,
    Unavailable,
)

Answer = dict[str, Any]
"""A JSON object as the API documents it under `/docs`."""

ERRORS: Mapping[int, type[DmsaeError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    415: BadRequest,
    503: Unavailable,
}
PAGE_SIZE = 200
PUT_TIMEOUT_S = 300.0
"""Of each part of an upload, and of the store's answer once it has all."""


class Client:
    """A connection to one API; use it in a `with` block, or close it."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 30.0) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, trust_env=not is_loopback(url)
        )
        self.distillations = Distillations(self)
        self.jobs = Jobs(self)
        self.groups = Groups(self)
        self.uploads = Uploads(self)
        self.latents = Latents(self)
        self.cores = Cores(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Ask once and give the answer; one without a body is empty.

        A POST with an `idempotency_key` is done once a day, however often it is sent.

        Raises:
            InvalidConfig: settings were refused; `problems` names field, value and rule of each.
            Unavailable: the API, or a part that it needs, does not answer.
            DmsaeError: any other refusal, as the class of its kind; `fields["code"]` is the API's code.
        """
        params = {name: str(value) for name, value in (query or {}).items() if value is not None}
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        try:
            response = self._http.request(method, path, json=body, params=params, headers=headers)
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from error
        if response.is_success:
            return dict(response.json()) if response.content else {}
        raise _error_of(response)

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[Answer]:
        """Go through a job's events behind a number, each once and as it happens, until the job has ended.

        Raises:
            NotFound: there is no such job.
            Unavailable: the API does not come back.
        """
        try:
            yield from follow(self._http, job_id, after=after)
        except Refused as refused:
            raise _error_of(refused.response) from refused

    def pages(self, path: str, **query: Any) -> Iterator[Answer]:
        """Go through all items of a paged list."""
        cursor: str | None = None
        while True:
            page = self.request("GET", path, query={**query, "cursor": cursor, "limit": PAGE_SIZE})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return


class Distillations:
    """Distillations and their science."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        settings: Mapping[str, Any],
        *,
        is_dry_run: bool = False,
        is_reuse: bool = False,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Submit a distillation and give its job; a dry run stores nothing and gives what it would be.

        With `is_reuse` a job that has finished with the same config, data and code is given instead.

        Raises:
            InvalidConfig: settings that cannot work.
        """
        query = _submission_query(is_dry_run=is_dry_run, is_reuse=is_reuse)
        return self._client.request(
            "POST", "/distillations", body=settings, query=query, idempotency_key=idempotency_key
        )

    def get(self, job_id: str) -> Answer:
        """Give the job with its config and its cycles in short."""
        return self._client.request("GET", f"/distillations/{job_id}")

    def cycles(self, job_id: str) -> list[Answer]:
        """List all cycles with their metrics."""
        return list(self._client.request("GET", f"/distillations/{job_id}/cycles")["items"])

    def core(self, job_id: str, *, cycle_index: int | None = None, min_selected: int = 1) -> list[Answer]:
        """List the latents of a core: of the last cycle if no other is named."""
        path = f"/distillations/{job_id}/core"
        return list(self._client.pages(path, cycle_index=cycle_index, min_selected=min_selected))

    def lineage(self, job_id: str) -> Iterator[Answer]:
        """Go through every latent that any core held, each with its path."""
        return self._client.pages(f"/distillations/{job_id}/lineage")

    def origins(self, job_id: str) -> Answer:
        """Give the matrix cycle x origin."""
        return self._client.request("GET", f"/distillations/{job_id}/origins")


class Jobs:
    """Jobs of every kind."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, job_id: str) -> Answer:
        """Give a job: state, progress, config, links."""
        return self._client.request("GET", f"/jobs/{job_id}")

    def find(self, **filters: str) -> Iterator[Answer]:
        """Go through jobs, the newest first; filters are `state`, `kind`, `owner`, `tag` and `text`."""
        return self._client.pages("/jobs", **filters)

    def cancel(self, job_id: str) -> Answer:
        """Cancel a job; one that has ended stays as it is."""
        return self._client.request("POST", f"/jobs/{job_id}/cancel")

    def retry(self, job_id: str) -> Answer:
        """Queue a failed job again, from its failed cycle on; one that was retried already stays as it is.

        Raises:
            Conflict: it has not failed, or a job that it starts from was deleted.
        """
        return self._client.request("POST", f"/jobs/{job_id}/retry")

    def clone(
        self,
        job_id: str,
        changes: Mapping[str, Any],
        *,
        name: str | None = None,
        is_dry_run: bool = False,
        is_reuse: bool = False,
    ) -> Answer:
        """Submit another job with a job's settings, changed as said, section by section.

        Raises:
            InvalidConfig: it is a probe, or the settings cannot work.
        """
        kind = self.get(job_id)["kind"]
        body = {"clone": job_id, "set": changes} | ({} if name is None else {"name": name})
        query = _submission_query(is_dry_run=is_dry_run, is_reuse=is_reuse)
        path = "/trainings" if kind == "training" else "/distillations"
        return self._client.request("POST", path, body=body, query=query)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with all that it stored; again is no error.

        Raises:
            Conflict: it has not ended, or a job that has not ended starts from its core.
        """
        self._client.request("DELETE", f"/jobs/{job_id}")

    def events(self, job_id: str, *, after: int = 0) -> list[Answer]:
        """List what happened behind a sequence number."""
        return list(self._client.request("GET", f"/jobs/{job_id}/events", query={"after": after})["items"])

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Answer]:
        """Go through events as they happen, each once, until the job has ended; breaks are gone over.

        Raises:
            Unavailable: the API does not come back.
        """
        return self._client.follow(job_id, after=after)

    def logs(self, job_id: str) -> list[Answer]:
        """List the end of what each attempt's trainer printed."""
        return list(self._client.request("GET", f"/jobs/{job_id}/logs")["items"])

    def artifacts(self, job_id: str) -> list[Answer]:
        """List the stored files, each with a link that works for a while."""
        return list(self._client.request("GET", f"/jobs/{job_id}/artifacts")["items"])


class Groups:
    """Jobs that were submitted as one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, group_id: str) -> Answer:
        """Give a group: its state, its jobs with their figures, and what the match of its chains found."""
        return self._client.request("GET", f"/groups/{group_id}")

    def cancel(self, group_id: str) -> Answer:
        """Cancel all jobs of a group; those that have ended stay as they are."""
        return self._client.request("POST", f"/groups/{group_id}/cancel")


class Uploads:
    """Files of text in the service's object store."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, path: Path, *, filename: str | None = None) -> Answer:
        """Put a file into the store, read bit by bit, and give what the API says of it, its `key` above all.

        Raises:
            InvalidConfig: the file is empty, too large, or of a kind that nothing reads.
            Unavailable: the API or the store does not answer.
            DmsaeError: the store refuses the file.
        """
        with path.open("rb") as file:
            body = {"filename": filename or path.name, "size_bytes": os.fstat(file.fileno()).st_size}
            upload = self._client.request("POST", "/uploads", body=body)
            url = upload["url"]
            try:
                with httpx.Client(timeout=PUT_TIMEOUT_S, trust_env=not is_loopback(url)) as http:
                    response = http.put(url, content=file, headers=upload["headers"])
            except httpx.HTTPError as error:
                host = httpx.URL(url).netloc.decode()
                raise Unavailable(f"The object store at {host} broke off: {error}") from error
        if not response.is_success:
            status = response.status_code
            raise DmsaeError(f"The object store refused {path.name!r} with status {status}.", status=status)
        return upload


def _submission_query(*, is_dry_run: bool, is_reuse: bool) -> dict[str, str]:
    asked = {"dry_run": is_dry_run, "reuse": is_reuse}
    return {name: "true" for name, is_asked in asked.items() if is_asked}


def is_loopback(url: str) -> bool:
    """Tell whether a URL names this machine, where no proxy of the environment may come between."""
    return httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")


def _error_of(response: httpx.Response) -> DmsaeError:
    """Turn a problem document into the error of its kind."""
    try:
        problem: Answer = response.json()
        detail, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, KeyError, TypeError):
        return DmsaeError(f"The API answered {response.status_code} without a problem document.")
    if response.status_code == 422 and problem.get("errors"):
        return InvalidConfig([FieldProblem(**found) for found in problem["errors"]])
    kind = ERRORS.get(response.status_code, DmsaeError)
    return kind(detail, param=problem.get("param"), code=code, status=response.status_code)

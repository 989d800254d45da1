"""What the client can ask of distillations, jobs, groups and uploads, each call written once."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmsae.client import pulling
from dmsae.client.calls import Answer, Pause, Put, Request, Resource, RowSteps, S, Steps, call, listing, pages
from dmsae.client.pulling import Pulled, Tell
from dmsae.client.saes import LoadedSae, open_sae
from dmsae.errors import DmsaeError, RateLimited, Unavailable

FINAL_STATES = ("succeeded", "failed", "cancelled")
POLL_S = 20
SHORTEST_POLL_S = 1.0
"""Between two questions of which the first brought nothing new, whatever stands in between."""
N_TRIES = 10
"""In a row without an answer, before a wait is given up."""
LONGEST_WAIT_S = 30.0


class Distillations(Resource[S]):
    """Distillations and their science."""

    @call
    def create(
        self,
        settings: Mapping[str, Any],
        *,
        is_dry_run: bool = False,
        is_reuse: bool = False,
        idempotency_key: str | None = None,
    ) -> Steps[Answer]:
        """Submit a distillation and give its job; a dry run stores nothing and gives what it would be.

        With `is_reuse` a job that has finished with the same config, data and code is given instead. With an
        `idempotency_key` it is done once a day, however often it is sent.

        Raises:
            InvalidConfig: settings that cannot work.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        query = _submission_query(is_dry_run=is_dry_run, is_reuse=is_reuse)
        answer: Answer = yield Request("POST", "/distillations", settings, query, headers)
        return answer

    @call
    def get(self, job_id: str) -> Steps[Answer]:
        """Give the job with its config and its cycles in short."""
        return (yield from _get(f"/distillations/{job_id}"))

    @call
    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Steps[Answer]:
        """Wait until the job has ended, and give it; see `Jobs.wait`."""
        return (yield from wait_for_end(job_id, timeout_s))

    @call
    def cycles(self, job_id: str) -> Steps[list[Answer]]:
        """List all cycles with their metrics."""
        return (yield from _items(f"/distillations/{job_id}/cycles"))

    @call
    def core(
        self, job_id: str, *, cycle_index: int | None = None, min_selected: int = 1
    ) -> Steps[list[Answer]]:
        """List the latents of a core: of the last cycle if no other is named."""
        found: list[Answer] = []
        cursor: str | None = None
        while True:
            query = {"cycle_index": cycle_index, "min_selected": min_selected, "cursor": cursor, "limit": 200}
            page = yield Request("GET", f"/distillations/{job_id}/core", query=query)
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    @listing
    def lineage(self, job_id: str) -> RowSteps:
        """Go through every latent that any core held, each with its path."""
        return pages(f"/distillations/{job_id}/lineage")

    @call
    def origins(self, job_id: str) -> Steps[Answer]:
        """Give the matrix cycle x origin."""
        return (yield from _get(f"/distillations/{job_id}/origins"))

    @call
    def load_sae(self, job_id: str, *, cycle: int = -1, folder: Path | None = None) -> Steps[LoadedSae]:
        """Give the SAE of a finished cycle (-1: the last), kept in a folder if one is named; needs torch.

        Raises:
            NotFound: there is no such cycle, or it has not finished.
            DmsaeError: torch is not installed.
        """
        with tempfile.TemporaryDirectory(prefix="dmsae-sae-") as given:
            place = Path(given) if folder is None else folder
            pulled = yield from pulling.pull(job_id, place, cycle=cycle, below="sae/", tell=_silent)
            return open_sae(pulled.sae_folders[0])


class Jobs(Resource[S]):
    """Jobs of every kind."""

    @call
    def get(self, job_id: str) -> Steps[Answer]:
        """Give a job: state, progress, config, links."""
        return (yield from _get(f"/jobs/{job_id}"))

    @listing
    def find(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        group_id: str | None = None,
        owner: str | None = None,
        tag: str | None = None,
        model: str | None = None,
        text: str | None = None,
    ) -> RowSteps:
        """Go through jobs, the newest first, by what they are to have; of a model's name a part is enough."""
        things = {"state": state, "kind": kind, "group_id": group_id}
        return pages("/jobs", {**things, "owner": owner, "tag": tag, "model": model, "text": text})

    @call
    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Steps[Answer]:
        """Wait until a job has ended, and give it: its `state` is succeeded, failed or cancelled.

        Outages are waited for.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
            Unavailable: the API does not come back.
        """
        return (yield from wait_for_end(job_id, timeout_s))

    @call
    def cancel(self, job_id: str) -> Steps[Answer]:
        """Cancel a job; one that has ended stays as it is."""
        return (yield from _post(f"/jobs/{job_id}/cancel"))

    @call
    def retry(self, job_id: str) -> Steps[Answer]:
        """Queue a failed job again, from its failed cycle on; one that was retried already stays as it is.

        Raises:
            Conflict: it has not failed, or a job that it starts from was deleted.
        """
        return (yield from _post(f"/jobs/{job_id}/retry"))

    @call
    def clone(
        self,
        job_id: str,
        changes: Mapping[str, Any],
        *,
        name: str | None = None,
        is_dry_run: bool = False,
        is_reuse: bool = False,
    ) -> Steps[Answer]:
        """Submit another job with a job's settings, changed as said, section by section.

        Raises:
            InvalidConfig: it is a probe, or the settings cannot work.
        """
        kind = (yield Request("GET", f"/jobs/{job_id}"))["kind"]
        body = {"clone": job_id, "set": changes} | ({} if name is None else {"name": name})
        query = _submission_query(is_dry_run=is_dry_run, is_reuse=is_reuse)
        path = "/trainings" if kind == "training" else "/distillations"
        answer: Answer = yield Request("POST", path, body, query)
        return answer

    @call
    def delete(self, job_id: str) -> Steps[None]:
        """Delete a job that has ended, with all that it stored; again is no error.

        Raises:
            Conflict: it has not ended, or a job that has not ended starts from its core.
        """
        yield Request("DELETE", f"/jobs/{job_id}")

    @call
    def events(self, job_id: str, *, after: int = 0) -> Steps[list[Answer]]:
        """List what happened behind a sequence number."""
        return (yield from _items(f"/jobs/{job_id}/events", {"after": after}))

    @call
    def logs(self, job_id: str) -> Steps[list[Answer]]:
        """List the end of what each attempt's trainer printed."""
        return (yield from _items(f"/jobs/{job_id}/logs"))

    @call
    def artifacts(self, job_id: str) -> Steps[list[Answer]]:
        """List the stored files, each with a link that works for a while."""
        return (yield from _items(f"/jobs/{job_id}/artifacts"))

    @call
    def pull(
        self, job_id: str, folder: Path, *, cycle: int | None = None, tell: Tell | None = None
    ) -> Steps[Pulled]:
        """Bring the stored files of all cycles, or of one (-1: the last), into `folder/cycle_N/`.

        What is whole stays, what broke off goes on, every sha256 is checked, and no file is ever half there.

        Raises:
            NotFound: there is no such job, or it has stored nothing of that cycle.
            BytesDiffer: the store gave other bytes than were recorded.
            Unavailable: the API or the store does not answer; another pull goes on from there.
        """
        return (yield from pulling.pull(job_id, folder, cycle=cycle, below="", tell=tell or _silent))


class Groups(Resource[S]):
    """Jobs that were submitted as one."""

    @call
    def get(self, group_id: str) -> Steps[Answer]:
        """Give a group: its state, its jobs with their figures, and what the match of its chains found."""
        return (yield from _get(f"/groups/{group_id}"))

    @call
    def cancel(self, group_id: str) -> Steps[Answer]:
        """Cancel all jobs of a group; those that have ended stay as they are."""
        return (yield from _post(f"/groups/{group_id}/cancel"))


class Uploads(Resource[S]):
    """Files of text in the service's object store."""

    @call
    def create(self, path: Path, *, filename: str | None = None) -> Steps[Answer]:
        """Put a file into the store, read bit by bit, and give what the API says of it, its `key` above all.

        Raises:
            InvalidConfig: the file is empty, too large, or of a kind that nothing reads.
            Unavailable: the API or the store does not answer.
            DmsaeError: the store refuses the file.
        """
        size_bytes = path.stat().st_size
        body = {"filename": filename or path.name, "size_bytes": size_bytes}
        upload: Answer = yield Request("POST", "/uploads", body)
        status: int = yield Put(upload["url"], path, size_bytes, upload["headers"])
        if not 200 <= status < 300:
            raise DmsaeError(f"The object store refused {path.name!r} with status {status}.", status=status)
        return upload


def _get(path: str) -> Steps[Answer]:
    answer: Answer = yield Request("GET", path)
    return answer


def _post(path: str) -> Steps[Answer]:
    answer: Answer = yield Request("POST", path)
    return answer


def _items(path: str, query: Mapping[str, Any] | None = None) -> Steps[list[Answer]]:
    answer = yield Request("GET", path, query=query)
    return list(answer["items"])


def wait_for_end(job_id: str, timeout_s: float | None) -> Steps[Answer]:
    """Wait until a job has ended, and give it; see `Jobs.wait`."""
    ends_at = None if timeout_s is None else time.monotonic() + timeout_s
    job: Answer = yield Request("GET", f"/jobs/{job_id}")
    n_failed = 0
    while job["state"] not in FINAL_STATES:
        left_s = POLL_S if ends_at is None else min(POLL_S, ends_at - time.monotonic())
        if left_s <= 0:
            raise TimeoutError(f"{job_id} is still {job['state']} after {timeout_s:g} s.")
        known = {"If-None-Match": f'"{job["version"]}"'}
        began = time.monotonic()
        try:
            changed = yield Request("GET", f"/jobs/{job_id}", query={"wait": int(left_s)}, headers=known)
        except (Unavailable, RateLimited):
            n_failed += 1
            if n_failed >= N_TRIES:
                raise
            yield Pause(min(LONGEST_WAIT_S, 0.25 * 2**n_failed))
        else:
            n_failed, is_news = 0, changed.get("version", job["version"]) != job["version"]
            job = changed or job
            if not is_news and time.monotonic() - began < SHORTEST_POLL_S:
                yield Pause(min(left_s, SHORTEST_POLL_S))
    return job


def _submission_query(*, is_dry_run: bool, is_reuse: bool) -> dict[str, str]:
    asked = {"dry_run": is_dry_run, "reuse": is_reuse}
    return {name: "true" for name, is_asked in asked.items() if is_asked}


def _silent(_: str, __: int, ___: int) -> None:
    """Tell nobody."""

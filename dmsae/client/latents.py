"""Latents of the whole lab and cores, for the client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmsae.client.client import Answer, Client


class Latents:
    """Latents of all jobs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def find(self, **filters: Any) -> Iterator[Answer]:
        """Go through latents: `job_id`, `origin_job_id`, `min_times_selected`, `is_alive`, `order`, ..."""
        return self._client.pages("/latents", **filters)

    def get(self, latent_id: str) -> Answer:
        """Give one latent's whole story, with all who descend from it.

        Raises:
            NotFound: there is no such latent.
        """
        story = self._client.request("GET", f"/latents/{latent_id}")
        cursor = story["descendants_cursor"]
        while cursor is not None:
            more = self._client.request("GET", f"/latents/{latent_id}/descendants", query={"cursor": cursor})
            story["descendants"] += more["items"]
            cursor = more["next_cursor"]
        return {**story, "descendants_cursor": None}

    def of_job(self, job_id: str) -> Iterator[Answer]:
        """Go through every latent that a core of a distillation or training held, each with its path.

        Raises:
            NotFound: there is no such job.
        """
        kind = self._client.request("GET", f"/jobs/{job_id}")["kind"]
        return self._client.pages(f"/{kind}s/{job_id}/lineage")


class Cores:
    """Cores, and the names under which they are published."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def find(self, **filters: Any) -> Iterator[Answer]:
        """Go through cores, the newest first: `job_id`, `name`, `is_published`."""
        return self._client.pages("/cores", **filters)

    def get(self, reference: str) -> Answer:
        """Give a core by its id, or by its name, such as `lab/gemma-2-2b-l12@3`.

        Raises:
            NotFound: there is no such core.
        """
        return self._client.request("GET", f"/cores/{reference}")

    def publish(self, core_id: str, name: str) -> Answer:
        """Give a core the next version of a name; from then on it stays as it is.

        Raises:
            Forbidden: the core, or the name, is another owner's.
            Conflict: it has another name.
        """
        return self._client.request("POST", f"/cores/{core_id}/publish", body={"name": name})

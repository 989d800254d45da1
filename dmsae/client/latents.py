"""What the client can ask of the latents of the whole lab, and of cores."""

from typing import Any

from dmsae.client.calls import Answer, Request, Resource, RowSteps, S, Steps, call, listing, pages


class Latents(Resource[S]):
    """Latents of all jobs."""

    @listing
    def find(self, /, **filters: Any) -> RowSteps:
        """Go through latents: `job_id`, `origin_job_id`, `min_times_selected`, `is_alive`, `order`, ..."""
        return pages("/latents", filters)

    @call
    def get(self, latent_id: str) -> Steps[Answer]:
        """Give one latent's whole story, with all who descend from it.

        Raises:
            NotFound: there is no such latent.
        """
        story: Answer = yield Request("GET", f"/latents/{latent_id}")
        cursor = story["descendants_cursor"]
        while cursor is not None:
            more = yield Request("GET", f"/latents/{latent_id}/descendants", query={"cursor": cursor})
            story["descendants"] += more["items"]
            cursor = more["next_cursor"]
        return {**story, "descendants_cursor": None}

    @call
    def snippets(self, latent_id: str, *, core_id: str | None = None) -> Steps[Answer]:
        """Give texts at which a latent fires, its density and logit lens, as a core's cycle stored them.

        By default of the latest core that holds it.

        Raises:
            NotFound: there is no such latent or core, or its cycle stored none.
        """
        query = {} if core_id is None else {"core": core_id}
        answer: Answer = yield Request("GET", f"/latents/{latent_id}/snippets", query=query)
        return answer

    @listing
    def of_job(self, job_id: str) -> RowSteps:
        """Go through every latent that a core of a distillation or training held, each with its path.

        Raises:
            NotFound: there is no such job.
        """
        kind = (yield Request("GET", f"/jobs/{job_id}"))["kind"]
        yield from pages(f"/{kind}s/{job_id}/lineage")


class Cores(Resource[S]):
    """Cores, and the names under which they are published."""

    @listing
    def find(self, /, **filters: Any) -> RowSteps:
        """Go through cores, the newest first: `job_id`, `name`, `is_published`."""
        return pages("/cores", filters)

    @call
    def get(self, reference: str) -> Steps[Answer]:
        """Give a core by its id, or by its name, such as `lab/gemma-2-2b-l12@3`.

        Raises:
            NotFound: there is no such core.
        """
        answer: Answer = yield Request("GET", f"/cores/{reference}")
        return answer

    @call
    def publish(self, core_id: str, name: str) -> Steps[Answer]:
        """Give a core the next version of a name; from then on it stays as it is.

        Raises:
            Forbidden: the core, or the name, is another owner's.
            Conflict: it has another name.
        """
        answer: Answer = yield Request("POST", f"/cores/{core_id}/publish", {"name": name})
        return answer

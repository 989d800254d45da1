"""What the client can ask of finished cores by probes, short jobs on the queue."""

from collections.abc import Mapping
from typing import Any

from dmsae.client.calls import Answer, Request, Resource, S, Steps, call
from dmsae.client.resources import wait_for_end


class Probes(Resource[S]):
    """Logit lenses, matches and prompts of finished cores."""

    @call
    def create(
        self, settings: Mapping[str, Any], *, is_dry_run: bool = False, idempotency_key: str | None = None
    ) -> Steps[Answer]:
        """Queue a probe, such as `{"kind": "prompt", "core": {"job": ID}, "prompt": "..."}`, and give it.

        A dry run stores nothing and gives what it would be. With an `idempotency_key` it is done once a day,
        however often it is sent.

        Raises:
            InvalidConfig: settings that cannot work, or a core that is not there.
        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        query = {"dry_run": "true"} if is_dry_run else {}
        answer: Answer = yield Request("POST", "/probes", settings, query, headers)
        return answer

    @call
    def get(self, probe_id: str) -> Steps[Answer]:
        """Give a probe: its job, and `result` once it has succeeded.

        Raises:
            NotFound: there is no such probe.
        """
        answer: Answer = yield Request("GET", f"/probes/{probe_id}")
        return answer

    @call
    def wait(self, probe_id: str, *, timeout_s: float | None = None) -> Steps[Answer]:
        """Wait until a probe has ended, and give it with what it found; see `Jobs.wait`.

        Raises:
            TimeoutError: it has not ended within `timeout_s`.
            Unavailable: the API does not come back.
        """
        yield from wait_for_end(probe_id, timeout_s)
        answer: Answer = yield Request("GET", f"/probes/{probe_id}")
        return answer

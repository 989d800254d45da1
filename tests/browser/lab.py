"""A lab to look at: a site that really runs, a text full of markup, and ten thousand jobs of years past."""

import json
from typing import Any

import httpx
import psycopg

from dmsae.config import SPEC_VERSION, DistillationConfig
from dmsae.presets import PRESETS
from tests.e2e.site import Site, wait_for
from tests.texts import passages, write_rows

N_JOBS = 10_000
HELD_JOB = "dst_00000050"
"""One of them that is queued, and held."""
MARKUP = '<img src="x" onerror="window.hacked = true"><script>window.hacked = true</script>'
"""What would run, were it ever taken for anything but text."""
SMALL: dict[str, Any] = {"training": {"n_tokens": 16_384}, "attribution": {"n_tokens": 1000}}
ERROR = {"code": "disk_full", "message": "The disk is full.", "param": None, "retryable": True}

OWNERS = """
INSERT INTO owners (id, name)
SELECT 'own_' || name, name FROM unnest(ARRAY['ada', 'grace', 'emmy', 'sofia']) AS name
"""
JOBS = """
INSERT INTO jobs (id, kind, owner_id, state, state_reason, held, priority, spec_version, name, tags, config,
    error, created_at, started_at, finished_at)
SELECT 'dst_' || lpad(i::text, 8, '0'), 'distillation',
    'own_' || (ARRAY['ada', 'grace', 'emmy', 'sofia'])[1 + i %% 4],
    state, CASE state WHEN 'failed' THEN 'Cycle 0 failed: the disk of its worker is full.' END,
    state = 'queued', 'normal', %(spec_version)s, 'planted ' || i, ARRAY['planted', 'year-' || i / 1000],
    %(config)s, CASE state WHEN 'failed' THEN %(error)s::jsonb END, began,
    CASE WHEN state <> 'queued' THEN began END,
    CASE WHEN state <> 'queued' THEN began + interval '1 hour' END
FROM generate_series(1, %(n)s) AS i,
    LATERAL (SELECT (ARRAY['succeeded', 'succeeded', 'failed', 'succeeded', 'cancelled', 'queued'])
        [CASE WHEN i %% 50 = 0 THEN 6 ELSE 1 + i %% 5 END] AS state,
        now() - interval '2 hours' - i * interval '1 minute' AS began) AS made
"""
CYCLES = """
INSERT INTO cycles (id, job_id, index, owner_id, priority_rank, state, resource_class, spec_version, held,
    selects_core, queued_at, started_at, finished_at)
SELECT 'cyc_' || substr(id, 5), id, 0, owner_id, 1, state, 'gpu', spec_version, held, state <> 'succeeded',
    created_at, started_at, finished_at
FROM jobs WHERE 'planted' = ANY (tags)
"""


def plant_jobs(server_url: str, n: int = N_JOBS) -> None:
    """Put jobs of several owners and states into a database; those that are queued are held."""
    config = DistillationConfig.model_validate(PRESETS["demo"]).model_dump(mode="json")
    given = {"n": n, "spec_version": SPEC_VERSION, "config": json.dumps(config), "error": json.dumps(ERROR)}
    with psycopg.connect(server_url, autocommit=True) as connection:
        for statement in (OWNERS, JOBS, CYCLES):
            connection.execute(statement, given)
        connection.execute("ANALYZE")


class Lab:
    """The site, and its jobs by what they are for."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.url = str(site.http.base_url).rstrip("/")
        self.distillation = ""
        """Of two cycles, over a text with markup, under a name with markup."""
        self.training = ""
        """Around the last core of the distillation; none before `finish`."""

    def begin(self) -> None:
        """Submit the distillation; it runs while other tests look at other things."""
        lines = [f"{passage} {MARKUP}" for passage in passages(600)]
        file = write_rows(self.site.model.parent / "marked.jsonl", lines)
        text = {"source": "files", "paths": [str(file)]}
        self.distillation = self.site.submit(
            n_cycles=2, name=f"marked {MARKUP}", tags=["marked"], data={"text": text}, **SMALL
        )

    def finish(self) -> None:
        """Wait until it has succeeded, and a training around its core too."""
        self._succeeded(self.distillation)
        if not self.training:
            core = {"kind": "selected", "cycle": {"job_id": self.distillation}}
            answer = self.site.http.post(
                "/trainings", json={"core": core, "sae": {"k": 3}, "name": "around it"}
            )
            assert answer.status_code == 202, answer.text
            self.training = answer.json()["id"]
            self._succeeded(self.training)

    def shared_latent(self) -> str:
        """Give a latent of the distillation that the training selected again."""
        core = self.site.get(f"/trainings/{self.training}/core")["items"]
        return next(latent["latent_id"] for latent in core if latent["parent_core_index"] is not None)

    def stop_api(self) -> None:
        process = self.site.processes["api"]
        process.terminate()
        process.wait(30)

    def start_api(self) -> None:
        self.site.start_process("api", ["-m", "api"])
        wait_for(self._answers, seconds=60, what="the API answers again")

    def slow_job(self, **fields: Any) -> str:
        """Submit a job that would train for minutes."""
        return self.site.submit(n_cycles=1, training={"n_tokens": None, "epochs": 200}, **fields)

    def _succeeded(self, job_id: str) -> None:
        job = self.site.wait_until_over(job_id, seconds=140)
        assert job["state"] == "succeeded", (job["error"], self.site.get(f"/jobs/{job_id}/logs"))

    def _answers(self) -> bool:
        try:
            return self.site.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

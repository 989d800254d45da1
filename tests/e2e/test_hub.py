"""Model and text from a hub, asked by real trainers; and what becomes of a job that the hub refuses."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.e2e.conftest import HUB_TOKEN
from tests.e2e.site import Site
from tests.fake_hub import REVISION, FakeHub
from tests.tiny import uncompiled_config


@pytest.fixture(scope="module")
def config(site: Site, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A distillation of two cycles whose model and text lie on the hub, for those who have a token only."""
    hub.add("lab/tiny", site.model).needs_token = True
    hub.add("lab/forbidden", site.model).refusal = (403, {"X-Error-Code": "GatedRepo"})
    text = write_text(tmp_path_factory.mktemp("text"))
    hub.add("lab/topics", text, kind="datasets").needs_token = True
    few = {"training": {"n_tokens": 4096}, "attribution": {"n_tokens": 500}, "evaluation": {"n_tokens": 500}}
    config = uncompiled_config(site.model, n_cycles=2, **few)
    config["model"] = {"source": "hub", "id": "lab/tiny", "revision": REVISION}
    files = ["data/*.parquet", "data/*.zst"]
    config["data"]["text"] = {"source": "hub", "id": "lab/topics", "revision": REVISION, "files": files}
    return config


def write_text(folder: Path) -> Path:
    """Write the built-in text half as parquet and half as jsonl.zst."""
    (folder / "data").mkdir()
    passages = [passage for name in sorted(topics) for passage in topics[name].split("\n\n") if passage]
    half = len(passages) // 2
    pq.write_table(pa.table({"text": passages[:half]}), folder / "data" / "a.parquet")
    lines = "".join(json.dumps({"text": passage}) + "\n" for passage in passages[half:])
    (folder / "data" / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return folder


def submit(site: Site, config: dict[str, Any]) -> str:
    answer = site.http.post("/distillations", json=config)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def everything_told(site: Site, job_id: str) -> str:
    """All that the API and the processes' logs say of a job."""
    paths = ("", "/events", "/logs")
    answers = [site.http.get(f"/jobs/{job_id}{path}").raise_for_status().text for path in paths]
    return "".join([*answers, *(log.read_text() for log in site.folder.glob("*.log"))])


def test_two_cycles_on_a_model_and_a_dataset_of_the_hub(
    site: Site, hub: FakeHub, config: dict[str, Any]
) -> None:
    job_id = submit(site, config)
    job = site.wait_until_over(job_id)
    assert job["state"] == "succeeded", (job["error"], site.get(f"/jobs/{job_id}/logs"))
    assert [cycle["n_attempts"] for cycle in site.get(f"/distillations/{job_id}")["cycles"]] == [1, 1]
    asked = hub.stored("model.safetensors")
    assert len(asked) == 1
    assert not any(seen.has_token for seen in hub.seen if seen.host == "localhost")
    assert hub.stored("a.parquet")
    assert hub.stored("b.jsonl.zst")
    assert [seen for seen in hub.seen if "/lab/t" not in seen.path] == []
    assert HUB_TOKEN not in everything_told(site, job_id)


def test_a_job_whose_model_the_hub_refuses_fails_and_tells_no_token(
    site: Site, hub: FakeHub, config: dict[str, Any]
) -> None:
    model = {**config["model"], "id": "lab/forbidden"}
    job_id = submit(site, {**config, "model": model})
    job = site.wait_until_over(job_id)
    assert job["state"] == "failed"
    assert (job["error"]["code"], job["error"]["param"]) == ("hub_forbidden", "model.id")
    assert not job["error"]["retryable"]
    assert "accept the conditions" in job["error"]["message"]
    assert any(seen.has_token for seen in hub.seen if "lab/forbidden" in seen.path)
    assert HUB_TOKEN not in everything_told(site, job_id)

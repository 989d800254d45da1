"""A text that a person uploads through a link, and a real trainer reads; then the job is deleted."""

import json
from pydoc_data.topics import topics
from typing import Any

import httpx

from tests.e2e.site import Site, wait_for
from tests.tiny import uncompiled_config


def upload(site: Site, filename: str, content: bytes) -> str:
    body = {"filename": filename, "size_bytes": len(content)}
    answer = site.http.post("/uploads", json=body)
    assert answer.status_code == 201, answer.text
    link = answer.json()
    httpx.put(link["url"], content=content, headers=link["headers"], trust_env=False).raise_for_status()
    return str(link["key"])


def test_a_distillation_of_an_uploaded_text_and_its_end(site: Site) -> None:
    passages = [passage for name in sorted(topics) for passage in topics[name].split("\n\n") if passage]
    rows: list[Any] = [*({"text": passage} for passage in passages), {"text": None}, {"text": 7}]
    key = upload(site, "topics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    few = {"training": {"n_tokens": 4096}, "attribution": {"n_tokens": 500}, "evaluation": {"n_tokens": 500}}
    config = uncompiled_config(site.model, n_cycles=2, **few)
    config["data"]["text"] = {"source": "objects", "objects": [{"key": key}]}
    answer = site.http.post("/distillations", json=config)
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    (pinned,) = answer.json()["config"]["data"]["text"]["objects"]
    assert (pinned["key"], bool(pinned["etag"])) == (key, True)

    job = site.wait_until_over(job_id)
    assert job["state"] == "succeeded", (job["error"], site.get(f"/jobs/{job_id}/logs"))
    assert (job["in_use"]["path"], job["in_use"]["attention"]) == ("model.layers.1", "sdpa")
    metrics = [cycle["metrics"] for cycle in site.get(f"/distillations/{job_id}/cycles")["items"]]
    assert [figures["n_rows_skipped_by_reason"] for figures in metrics] == [
        metrics[0]["n_rows_skipped_by_reason"]
    ] * 2
    links = [artifact["url"] for artifact in site.get(f"/jobs/{job_id}/artifacts")["items"]]
    assert all(httpx.get(link, trust_env=False).status_code == 200 for link in links)

    assert site.http.delete(f"/jobs/{job_id}").status_code == 204
    gone = site.http.get(f"/jobs/{job_id}")
    assert (gone.status_code, gone.json()["code"]) == (404, "deleted")
    wait_for(
        lambda: all(httpx.get(link, trust_env=False).status_code == 404 for link in links),
        seconds=60,
        what="its objects are gone",
    )

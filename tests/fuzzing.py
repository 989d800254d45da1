"""Schemathesis against a served API: requests from its OpenAPI document, with ids that lead somewhere."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from api.examples import JOB_ID
from tests.inhabited import PUBLIC_ADDRESS

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
)
"""All but those that forbid rules beyond JSON Schema: that a layer must lie within its model, say."""
ANSWERED = re.compile(
    r'^dmsae_api_requests_total\{method="(\w+)",route="([^"]+)",status="(\d)\d\d"\} (\S+)', re.MULTILINE
)
REFERENCE = re.compile(r"#/components/schemas/(\w+)")
JOBS = frozenset(("job_id", "origin_job_id", "clone", "job"))
"""Fields and queries that name a job."""


class Outcome(NamedTuple):
    """What a run found."""

    is_clean: bool
    n_cases: int
    told: str


class Target(NamedTuple):
    """Which API is asked, by which key, and what it says of itself."""

    url: str
    key: str
    document: Mapping[str, Any]


def run_schemathesis(
    folder: Path, target: Target, *, phases: Sequence[str], n_examples: int, calls: Mapping[str, str]
) -> Outcome:
    """Send what it makes up of a document, to the calls that options name; the seed is fixed."""
    folder.mkdir()
    stored = folder / "openapi.json"
    stored.write_text(json.dumps(target.document))
    options = {
        "--url": target.url,
        "--header": f"Authorization: Bearer {target.key}",
        "--phases": ",".join(phases),
        "--checks": ",".join(CHECKS),
        "--max-examples": str(n_examples),
        "--seed": "1",
        "--request-timeout": "30",
        "--suppress-health-check": "all",
        **calls,
    }
    flags = ("--continue-on-failure", "--no-shrink", "--no-color")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(stored), *flags]
    for name, value in options.items():
        command += [name, value]
    report = folder / "told.txt"
    with report.open("w") as taking:
        done = subprocess.run(command, cwd=folder, stdout=taking, stderr=subprocess.STDOUT)
    told = report.read_text()
    counted = re.search(r"(\d+) generated", told)
    return Outcome(done.returncode == 0, int(counted[1]) if counted else 0, told)


def with_ids(document: dict[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Suggest ids of what is there: else every call ends at 404.

    But where an unknown one is no fault: there an empty list is answered. No Idempotency-Key either: with the
    same one each time, all that follow are refused for it.
    """
    told = json.dumps(document).replace(JOB_ID, ids["job_id"][0]).replace("example.org", PUBLIC_ADDRESS)
    made: dict[str, Any] = json.loads(told)
    calls = [call for methods in made["paths"].values() for call in methods.values()]
    for call in calls:
        found = [given for given in call.get("parameters", []) if given["name"] != "Idempotency-Key"]
        call["parameters"] = found
        for given in (each for each in found if each["required"]):
            given["schema"] = _suggested(given["name"], given["schema"], ids)
    schemas = made["components"]["schemas"]
    for name in _reached(schemas, [call.get("requestBody") for call in calls]):
        for field, schema in schemas[name].get("properties", {}).items():
            schemas[name]["properties"][field] = _suggested(field, schema, ids)
    return made


def _suggested(name: str, schema: dict[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    known = ids.get("job_id" if name in JOBS else name)
    variants = [schema, *schema.get("anyOf", ())]
    if known is None or not any("pattern" in each for each in variants):
        return schema
    nothing = [None] * any(each.get("type") == "null" for each in variants)
    return {"enum": [*known, *nothing]}


def _reached(schemas: Mapping[str, Any], begin: object) -> set[str]:
    """Name the schemas that something refers to, directly or not."""
    found: set[str] = set()
    names = set(REFERENCE.findall(json.dumps(begin)))
    while names:
        found |= names
        names = set(REFERENCE.findall(json.dumps([schemas[name] for name in names]))) - found
    return found


def answered(metrics: str) -> Counter[tuple[str, str]]:
    """Count a process's answers by call and status class, from what Prometheus reads."""
    counts: Counter[tuple[str, str]] = Counter()
    for method, route, status, number in ANSWERED.findall(metrics):
        counts[f"{method} {route}", f"{status}xx"] += int(float(number))
    return counts


def tell(counts: Mapping[tuple[str, str], int]) -> str:
    """Show such counts, a line for each call and class."""
    return "\n".join(f"{n:8} {status} {call}" for (call, status), n in sorted(counts.items()))

"""Schemathesis against a served API: requests from its OpenAPI document, with ids that lead somewhere."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Outcome(NamedTuple):
    """What a run found."""

    is_clean: bool
    n_cases: int
    told: str


def run_schemathesis(
    folder: Path, *, url: str, key: str, document: Mapping[str, Any], phases: Sequence[str], n_examples: int
) -> Outcome:
    """Send what it makes up of a document; the seed is fixed."""
    stored = folder / "openapi.json"
    stored.write_text(json.dumps(document))
    options = {
        "--url": url,
        "--header": f"Authorization: Bearer {key}",
        "--phases": ",".join(phases),
        "--checks": ",".join(CHECKS),
        "--max-examples": str(n_examples),
        "--seed": "1",
        "--request-timeout": "30",
        "--suppress-health-check": "all",
    }
    flags = ("--continue-on-failure", "--no-shrink", "--no-color")
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(stored), *flags]
    for name, value in options.items():
        command += [name, value]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    told = done.stdout + done.stderr
    counted = re.search(r"(\d+) generated", told)
    return Outcome(done.returncode == 0, int(counted[1]) if counted else 0, told)


def with_ids(document: dict[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Let path parameters also be ids of things that are there: else every call ends at 404."""
    made: dict[str, Any] = json.loads(json.dumps(document))
    for methods in made["paths"].values():
        for call in methods.values():
            for given in call.get("parameters", []):
                if given["in"] == "path" and given["name"] in ids:
                    known = {"type": "string", "enum": list(ids[given["name"]])}
                    given["schema"] = {"anyOf": [known, given["schema"]]}
    return made

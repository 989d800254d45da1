"""Alerts ask for metrics that exist, and lead to a part of the runbook whose commands exist."""

import re
from typing import Any

import promql_parser
import pytest
import typer
import yaml

from api.metrics import CLASSES, Metrics
from dmsae.cli import app
from dmsae.service.database import Database
from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.queue_metrics import ActionCount, QueueNumbers, RunningCount, WorkerCount
from dmsae.service.settings import Settings
from tests.compose_file import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
RUNBOOK = PAGE.split("## Runbook\n")[1].split("\n## ")[0]
PARTS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", RUNBOOK, re.DOTALL | re.MULTILINE))
NAME = re.compile(r"\b(?:dmsae|process)_\w+")
TYPER = typer.main.get_command(app)


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Each metric of a scrape with its labels, told of a service in which everything happens."""
    running = [RunningCount(name, "ada", "training", 1, 1.0, -1.0, 5.0) for name in CLASSES]
    workers = [WorkerCount(name, "idle", 1, 1.0) for name in CLASSES]
    done = [ActionCount("swept", 1, 1.0), ActionCount("cleaned", 1, 1.0)]
    numbers = QueueNumbers([], running, [], workers, done, is_paused=False)
    found: dict[str, set[str]] = {}
    for family in metrics_of(numbers).registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def metrics_of(numbers: QueueNumbers) -> Metrics:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    settings = Settings(
        database_url=url,
        broker_url="redis://127.0.0.1:1/0",
        s3_endpoint_url="http://127.0.0.1:1",
        s3_access_key="a",
        s3_secret_key="b",
    )
    metrics = Metrics(settings, Database(url, wake_up=str), WakeUps(make_celery(settings.broker_url)))
    metrics.numbers.read = lambda: numbers  # type: ignore[method-assign]
    metrics.requests.labels("GET", "/jobs", "200").inc()
    metrics.seconds.labels("GET", "/jobs").observe(0.1)
    return metrics


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_each_alert_is_promql_over_metrics_that_the_service_has(
    rule: dict[str, Any], exported: dict[str, set[str]]
) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    promql_parser.parse(rule["expr"])
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    named = set(NAME.findall(rule["expr"]))
    assert named
    assert named <= exported.keys()
    of_prometheus = {"instance", "job", "le"}
    known = set().union(*(exported[name] for name in named)) | of_prometheus
    grouped = re.findall(r"\b(?:by|on|without) \((.*?)\)", rule["expr"])
    used = {label.strip() for group in grouped for label in group.split(",") if label.strip()}
    used |= set(re.findall(r"(\w+)(?:=~|!=|=)\"", rule["expr"]))
    assert used <= known
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert shown <= used


def test_each_alert_leads_to_a_part_of_the_runbook_that_says_what_to_do_and_no_part_is_left_over() -> None:
    assert [rule["alert"] for rule in RULES] == list(PARTS)
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        for part in ("*Means:*", "*Look:*", "*Do:*"):
            assert part in PARTS[rule["alert"]], rule["alert"]
    for link in re.findall(r"\]\(#(.*?)\)", RUNBOOK):
        assert link in {name.lower() for name in PARTS}


def test_each_command_of_the_runbook_exists() -> None:
    commands = re.findall(r"`dmsae ([a-z].*?)`", RUNBOOK)
    assert len(commands) > 8
    for words in commands:
        command: Any = TYPER
        rest = words.split()
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, words
            command = command.commands[rest.pop(0)]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_the_page_tells_of_every_metric_and_of_none_that_is_not_there(exported: dict[str, set[str]]) -> None:
    table = PAGE.split("## Metrics\n")[1].split("\n## ")[0]
    told = set(re.findall(r"`(dmsae_\w+)`", table))
    parts = ("_bucket", "_count", "_sum", "_created")
    families = {name for name in exported if name.startswith("dmsae_") and not name.endswith(parts)}
    assert told == families | {"dmsae_api_request_seconds"}


def test_the_scrape_config_reads_the_rules_beside_it_and_waits_longer_than_a_scrape_takes() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert [(FOLDER / name).is_file() for name in config["rule_files"]] == [True]
    assert int(config["global"]["scrape_timeout"].rstrip("s")) > 5

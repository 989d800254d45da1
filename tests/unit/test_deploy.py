"""Slurm, systemd, Kubernetes and the operator's page: every command and variable in them is real."""

import configparser
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from dmsae.service.settings import Settings, settings_from
from tests.compose_file import ROOT, interpolate, load, load_raw, read_dockerfile, required_variables

PAGE = (ROOT / "docs" / "operations.md").read_text()
CLUSTER = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
SBATCH = (ROOT / "deploy" / "worker.sbatch").read_text()
KNOWN = {f"DMSAE_{name.upper()}" for name in Settings.model_fields}
REQUIRED = {f"DMSAE_{name.upper()}" for name, field in Settings.model_fields.items() if field.is_required()}
GIVEN = dict.fromkeys(required_variables(), "x") | {"S3_PUBLIC_ENDPOINT_URL": "http://lab.example:8333"}


def pods() -> list[dict[str, Any]]:
    return [
        document["spec"]["template"]["spec"] for document in CLUSTER if "template" in document.get("spec", {})
    ]


def containers() -> dict[str, dict[str, Any]]:
    return {c["name"]: c for pod in pods() for c in [*pod.get("initContainers", []), *pod["containers"]]}


@pytest.mark.parametrize("document", CLUSTER, ids=lambda d: f"{d['kind']} {d['metadata']['name']}")
def test_kubernetes_takes_every_object_and_knows_each_of_its_fields(document: dict[str, Any]) -> None:
    for version in ("1.29", "1.34"):
        kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_schema_would_notice_a_field_that_it_does_not_know() -> None:
    deployment = next(document for document in CLUSTER if document["kind"] == "Deployment")
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_the_clusters_commands_are_those_of_the_compose_file() -> None:
    services = load(GIVEN)["services"]
    names = {"api": "api", "sweeper": "sweeper", "worker": "worker-gpu-0"} | {
        name: name for name in ("migrate", "make-bucket")
    }
    assert {name: found["command"] for name, found in containers().items()} == {
        name: services[service]["command"] for name, service in names.items()
    }
    for name in ("sweeper", "worker"):
        probe = containers()[name]["livenessProbe"]["exec"]["command"]
        assert probe == services[names[name]]["healthcheck"]["test"][1:]
    api = containers()["api"]
    assert [api[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] == [
        "/healthz",
        "/readyz",
    ]
    env = {entry["name"]: entry["value"] for entry in api["env"]}
    assert api["ports"][0]["containerPort"] == int(env["DMSAE_PORT"])


def test_the_clusters_variables_are_settings_and_with_the_secret_all_that_are_needed_are_there() -> None:
    (config,) = (document["data"] for document in CLUSTER if document["kind"] == "ConfigMap")
    secret = {
        "DMSAE_DATABASE_URL": "postgresql+psycopg://u:p@h/d", "DMSAE_BROKER_URL": "redis://:p@h/0",
        "DMSAE_S3_ACCESS_KEY": "a", "DMSAE_S3_SECRET_KEY": "s",
    }  # fmt: skip
    for name, container in containers().items():
        given = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        assert {*config, *given} <= KNOWN
        settings_from({**config, **secret, **given})
        sources = [next(iter(source)) for source in container["envFrom"]]
        assert sources == ["configMapRef", "secretRef"] + ["secretRef"] * (name == "worker")
    assert all(name in (ROOT / "deploy" / "kubernetes.yaml").read_text() for name in secret)


def test_the_clusters_pods_get_no_stray_variables_run_as_the_images_user_and_may_hand_back() -> None:
    for pod in pods():
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsUser"] == 10001
    (worker,) = (pod for pod in pods() if pod["containers"][0]["name"] == "worker")
    assert worker["terminationGracePeriodSeconds"] == 60
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounted = {mount["mountPath"] for mount in worker["containers"][0]["volumeMounts"]}
    assert mounted <= set(read_dockerfile("Dockerfile.gpu").environment().values())


def test_slurm_signals_the_worker_alone_and_in_time_and_its_script_is_shell() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SBATCH, re.MULTILINE))
    assert options["gres"] == "gpu:1"
    assert int(options["signal"].removeprefix("B:TERM@")) >= 60
    subprocess.run(["bash", "-n", ROOT / "deploy" / "worker.sbatch"], check=True, timeout=10)
    last = SBATCH.strip().splitlines()[-1]
    assert last.startswith("exec ")
    assert last.endswith('/.venv/bin/dmsae" worker --device "${DMSAE_DEVICE:-cuda:0}"')


def test_the_systemd_unit_starts_one_device_signals_the_worker_alone_and_knows_its_statuses() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(ROOT / "deploy" / "dmsae-worker@.service")
    service = unit["Service"]
    assert shlex.split(service["ExecStart"])[1:] == ["worker", "--device", "%i"]
    assert (service["KillMode"], service["Restart"]) == ("mixed", "always")
    assert int(service["TimeoutStopSec"]) >= 60
    assert service["RestartPreventExitStatus"] == "2"
    assert {pair.split("=")[0] for pair in shlex.split(service["Environment"])} <= KNOWN


def test_the_page_tells_of_every_setting_with_its_default() -> None:
    table = PAGE.split("## Every variable")[1]
    rows = dict(re.findall(r"^\| `(DMSAE_\w+)` \| (.*?) \|", table, re.MULTILINE))
    assert set(rows) == KNOWN
    assert {name for name, default in rows.items() if default == "needed"} == REQUIRED
    for name, field in Settings.model_fields.items():
        told = rows[f"DMSAE_{name.upper()}"]
        match field.default:
            case bool():
                assert told == f"`{str(field.default).lower()}`"
            case int() | float():
                assert told == f"`{field.default:g}`" or told == f"`{field.default}`"
            case str():
                assert told == f"`{field.default}`"
            case [*items]:
                assert told == (f"`{','.join(items)}`" if items else "none")
            case Path():
                assert told == "temporary"


def test_every_variable_on_the_page_exists() -> None:
    scripts = {"DMSAE_CHECKOUT", "DMSAE_ENV_FILE"}
    client = {"DMSAE_URL", "DMSAE_API_KEY", "DMSAE_PROFILE"}
    assert set(re.findall(r"DMSAE_\w+", PAGE)) <= KNOWN | scripts | client
    assert scripts <= set(re.findall(r"DMSAE_\w+", SBATCH))


def test_the_page_asks_for_exactly_the_variables_that_the_compose_file_needs() -> None:
    loop = re.search(r"for name in (.*?); do", PAGE, re.DOTALL)
    assert loop is not None
    filled = set(loop[1].replace("\\\n", " ").split())
    assert filled | {"S3_PUBLIC_ENDPOINT_URL"} == required_variables()


def test_the_second_gpu_of_the_page_is_the_first_one_but_for_its_number() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    anchors = "x-worker: &worker " + yaml.safe_dump(
        load_raw()["x-worker"], default_flow_style=True, width=10**6
    )
    second = interpolate(yaml.safe_load(anchors + block), GIVEN)["services"]["worker-gpu-1"]
    first = load(GIVEN)["services"]["worker-gpu-0"]
    second["hostname"] = second["hostname"].replace("1", "0")
    second["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] = ["0"]
    assert second == first


def test_every_file_that_the_page_links_to_is_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_a_missing_or_wrong_variable_is_named_and_no_value_is_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        settings_from({"DMSAE_DATABASE_URL": "postgresql+psycopg://u:hidden@h/d", "DMSAE_PORT": "hidden"})
    said = str(caught.value)
    assert "s3_secret_key" in said
    assert "port" in said
    assert "hidden" not in said.replace("hidden_", "")

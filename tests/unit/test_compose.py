"""docker-compose.yml and the Dockerfiles, without Docker: what they say is what the code reads."""

import importlib.util
import json
import re
import subprocess
import sysconfig
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from dmsae import cli
from dmsae.service.logs import SECRET_NAME
from dmsae.service.settings import Settings, settings_from
from tests.compose_file import (
    COMPOSE_FILE,
    ROOT,
    VARIABLE,
    MissingVariable,
    load,
    load_raw,
    packages_of,
    read_dockerfile,
    read_stages,
    required_variables,
    texts,
)

OURS = ("api", "sweeper", "worker-gpu-0", "worker-cpu-0", "migrate", "make-bucket")
ONE_SHOT = ("migrate", "make-bucket")
WORKERS = ("worker-gpu-0", "worker-cpu-0")
STORES = ("postgres", "valkey", "seaweedfs")
GIVEN = {name: f"{name.lower()}-value" for name in required_variables()} | {
    "S3_PUBLIC_ENDPOINT_URL": "http://lab.example:8333"
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(GIVEN)


def dockerfile_of(service: dict[str, Any]) -> str:
    return str(service["build"]["dockerfile"])


def program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def passes_schema(path: Path) -> bool:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_file_keeps_to_composes_own_schema(tmp_path: Path) -> None:
    assert passes_schema(COMPOSE_FILE)
    wrong = load_raw()
    wrong["services"]["api"]["restarts"] = "always"
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(wrong))
    assert not passes_schema(tmp_path / "wrong.yml")


def has_no_complaint(path: Path) -> bool:
    found = subprocess.run(
        [program("hadolint"), str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    return found.returncode == 0 and not found.stdout


@pytest.mark.skipif(not Path(program("hadolint")).exists(), reason="hadolint has no wheel for this platform")
def test_the_linter_has_nothing_to_say_of_either_dockerfile(tmp_path: Path) -> None:
    assert has_no_complaint(ROOT / "Dockerfile")
    assert has_no_complaint(ROOT / "Dockerfile.gpu")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert not has_no_complaint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("name", sorted(required_variables()))
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_nothing_starts_while_a_required_variable_is_missing_or_empty(name: str, how: str) -> None:
    given = {other: value for other, value in GIVEN.items() if other != name}
    with pytest.raises(MissingVariable, match=name):
        load(given if how == "missing" else {**given, name: ""})


def is_secret(name: str) -> bool:
    if name in ("HF_TOKEN", "DMSAE_REQUIRE_KEY"):
        return False
    return bool(SECRET_NAME.fullmatch(name) or re.search("JWT|KEY|REDISCLI_AUTH", name))


def test_no_secret_has_a_default_or_stands_in_the_file() -> None:
    for path, text in texts(load_raw()):
        plain = VARIABLE.sub("", text)
        assert not re.search(r"://[^/@]*:[^/@]+@", plain), path
        assert all(line.strip() == "requirepass" for line in plain.splitlines() if "requirepass" in line)
        assert all(found["rule"] == ":?" for found in VARIABLE.finditer(text) if is_secret(found["name"]))
        assert VARIABLE.fullmatch(text) or not is_secret(path.rsplit(".", 1)[-1]), path


def test_the_example_of_env_names_every_variable_and_no_value_of_a_required_one() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    required = [line for line in lines if re.fullmatch(r"\w+=.*", line)]
    optional = {line.removeprefix("# ").split("=")[0] for line in lines if re.fullmatch(r"# \w+=\S*", line)}
    assert set(required) == {f"{name}=" for name in required_variables()}
    named = {
        match["name"] for _, text in texts(load_raw()) for match in VARIABLE.finditer(text) if match["name"]
    }
    assert named == required_variables() | optional
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting_and_every_required_setting_is_there(
    compose: dict[str, Any], name: str
) -> None:
    service = compose["services"][name]
    image = read_dockerfile(dockerfile_of(service)).environment()
    env = {**image, **service["environment"]}
    known = {f"DMSAE_{field.upper()}" for field in Settings.model_fields}
    assert {variable for variable in env if variable.startswith("DMSAE_")} <= known
    settings = settings_from(env)
    assert settings.s3_public_endpoint_url is not None
    assert str(settings.s3_public_endpoint_url) == "http://lab.example:8333/"


def test_every_address_names_a_service_of_the_file_and_the_port_that_it_is_told(
    compose: dict[str, Any],
) -> None:
    flags = dict(flag.split("=", 1) for flag in compose["services"]["seaweedfs"]["command"] if "=" in flag)
    valkey = compose["configs"]["valkey"]["content"]
    told = {"postgres": 5432, "seaweedfs": int(flags["-s3.port"])}
    told["valkey"] = int(re.search(r"^port (\d+)$", valkey, re.MULTILINE)[1])
    for name in OURS:
        env = compose["services"][name]["environment"]
        for variable in ("DMSAE_DATABASE_URL", "DMSAE_BROKER_URL", "DMSAE_S3_ENDPOINT_URL"):
            url = urlsplit(env[variable])
            assert url.port == told[url.hostname or ""]
            assert set(compose["services"][name]["networks"]) & set(
                compose["services"][url.hostname]["networks"]
            )
    assert f"--port={told['postgres']}" in compose["services"]["postgres"]["healthcheck"]["test"]
    assert f"-p {told['valkey']} " in compose["services"]["valkey"]["healthcheck"]["test"][1]
    assert f":{told['seaweedfs']}/healthz" in compose["services"]["seaweedfs"]["healthcheck"]["test"][-1]


def test_passwords_of_the_stores_are_those_that_the_services_send(compose: dict[str, Any]) -> None:
    services = compose["services"]
    env = services["api"]["environment"]
    postgres = services["postgres"]["environment"]
    url = urlsplit(env["DMSAE_DATABASE_URL"])
    assert (url.username, url.password) == (postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"])
    assert url.path == f"/{postgres['POSTGRES_DB']}"
    password = urlsplit(env["DMSAE_BROKER_URL"]).password
    assert f"requirepass {password}\n" in compose["configs"]["valkey"]["content"]
    assert services["valkey"]["environment"]["REDISCLI_AUTH"] == password
    (identity,) = json.loads(compose["configs"]["identities"]["content"])["identities"]
    (pair,) = identity["credentials"]
    assert pair == {"accessKey": env["DMSAE_S3_ACCESS_KEY"], "secretKey": env["DMSAE_S3_SECRET_KEY"]}


def test_only_the_api_and_the_s3_port_are_published_on_loopback_unless_told_otherwise(
    compose: dict[str, Any],
) -> None:
    published = {
        name: service["ports"] for name, service in compose["services"].items() if "ports" in service
    }
    assert published == {"api": ["127.0.0.1:8000:8000"], "seaweedfs": ["127.0.0.1:8333:8333"]}
    assert compose["services"]["api"]["environment"]["DMSAE_PORT"] == "8000"
    assert read_dockerfile("Dockerfile").all_of("EXPOSE") == ["8000"]
    assert compose["services"]["api"]["environment"]["DMSAE_REQUIRE_KEY"] == "true"
    elsewhere = load({**GIVEN, "PUBLISH_ADDRESS": "192.0.2.1", "API_PORT": "80"})
    assert elsewhere["services"]["api"]["ports"] == ["192.0.2.1:80:8000"]


def test_postgres_and_valkey_are_on_the_private_network_alone(compose: dict[str, Any]) -> None:
    assert compose["networks"]["backend"]["internal"] is True
    assert [compose["services"][name]["networks"] for name in ("postgres", "valkey")] == [["backend"]] * 2


def test_of_the_store_only_s3_listens_beyond_its_container_and_it_reports_nothing_outside(
    compose: dict[str, Any],
) -> None:
    seaweedfs = compose["services"]["seaweedfs"]
    flags = dict(flag.split("=", 1) for flag in seaweedfs["command"] if "=" in flag)
    assert (flags["-ip"], flags["-ip.bind"]) == ("127.0.0.1", "127.0.0.1")
    assert flags["-s3.ip.bind"] == compose["services"]["api"]["environment"]["DMSAE_HOST"]
    assert (flags["-disableHttp"], flags["-master.telemetry"], flags["-s3.iam"]) == ("true", "false", "false")
    keys = {value for name, value in seaweedfs["environment"].items() if name.startswith("WEED_JWT_")}
    assert len(keys) == 4
    (config,) = seaweedfs["configs"]
    assert flags["-s3.config"] == config["target"]


def test_valkey_evicts_nothing_and_keeps_nothing(compose: dict[str, Any]) -> None:
    valkey = compose["services"]["valkey"]
    lines = compose["configs"]["valkey"]["content"].splitlines()
    assert {'save ""', "appendonly no", "maxmemory-policy noeviction", "protected-mode yes"} <= set(lines)
    assert valkey["command"][1] == valkey["configs"][0]["target"]


def test_images_of_others_are_pinned_by_version(compose: dict[str, Any]) -> None:
    for name in STORES:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?", compose["services"][name]["image"])
    for name in ("Dockerfile", "Dockerfile.gpu"):
        bases = [base for stage in read_stages(name) for base in stage.all_of("FROM")]
        assert all(re.fullmatch(r"python:3\.1[123]-slim-\w+(?: AS \w+)?", base) for base in bases)


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists_in_the_image_that_runs_it(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    image = read_dockerfile(dockerfile_of(service))
    copied = {text.split()[0] for text in image.all_of("COPY")}
    health = service["healthcheck"]["test"][1:] if "healthcheck" in service else []
    for command in filter(None, (service["command"], health, image.command(), image.health_check())):
        if command[0] == "dmsae":
            found = CliRunner().invoke(cli.app, [*command[1:], "--help"])
            assert found.exit_code == 0, found.output
            continue
        assert command[:2] == ["python", "-m"]
        assert command[2].split(".")[0] in copied
        module = command[2] if "." in command[2] else f"{command[2]}.__main__"
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).is_relative_to(ROOT)


def test_an_image_does_by_itself_what_its_first_service_does(compose: dict[str, Any]) -> None:
    for name in ("api", "worker-gpu-0"):
        service = compose["services"][name]
        image = read_dockerfile(dockerfile_of(service))
        assert image.command() == service["command"]
    gpu = compose["services"]["worker-gpu-0"]
    assert read_dockerfile("Dockerfile.gpu").health_check() == gpu["healthcheck"]["test"][1:]


def test_the_apis_image_holds_no_torch_and_the_workers_does() -> None:
    assert read_dockerfile("Dockerfile").all_of("RUN")[-1].endswith("--editable '.[server]'")
    assert "--editable '.[worker]'" in read_dockerfile("Dockerfile.gpu").all_of("RUN")[1]
    assert not {"torch", "transformers", "numba"} & packages_of("server")
    assert {"torch", "transformers", "nvidia-ml-py", "celery"} <= packages_of("worker")


def test_both_images_run_as_nobody_special_and_install_wheels_and_at_most_a_compiler() -> None:
    for name in ("Dockerfile", "Dockerfile.gpu"):
        image = read_dockerfile(name)
        keywords = [keyword for keyword, _ in image.instructions]
        assert image.all_of("USER") == ["10001:10001"]
        assert keywords.index("USER") < keywords.index("CMD")
        assert image.environment()["PIP_ONLY_BINARY"] == ":all:"
        assert all("constraints.txt" in step for step in image.all_of("RUN") if "pip install" in step)
        system_packages = re.findall(r"apt-get install ([^&]+)", " ".join(image.all_of("RUN")))
        compiler = ["--yes --no-install-recommends gcc libc6-dev"] if name == "Dockerfile.gpu" else []
        assert [packages.strip() for packages in system_packages] == compiler


def test_what_the_images_copy_exists_and_nothing_else_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    copied = set()
    for name in ("Dockerfile", "Dockerfile.gpu"):
        for text in (text for stage in read_stages(name) for text in stage.all_of("COPY")):
            if not text.startswith("--from="):
                copied |= set(text.split()[:-1])
    assert {PurePosixPath(path).parts[0] for path in copied} == sent
    assert all((ROOT / path).exists() for path in copied)


def test_volumes_lie_where_the_settings_point_and_every_one_is_declared(compose: dict[str, Any]) -> None:
    image = read_dockerfile("Dockerfile.gpu")
    (declared,) = image.all_of("VOLUME")
    folders = {image.environment()[name] for name in ("DMSAE_CACHE_DIR", "DMSAE_WORK_DIR", "DMSAE_LOCK_DIR")}
    assert set(json.loads(declared)) == folders
    assert all(folder in image.all_of("RUN")[-1].split() for folder in folders)
    named = set()
    for name, service in compose["services"].items():
        mounts = [mount.split(":") for mount in service.get("volumes", [])]
        named |= {mount[0] for mount in mounts}
        if name in WORKERS:
            assert {mount[1] for mount in mounts} == {*folders, service["environment"]["DMSAE_ALLOWED_ROOTS"]}
        for mount in mounts:
            assert mount[1] != "/data" or name == "seaweedfs" or mount[2] == "ro"
    assert named == set(compose["volumes"])


@pytest.mark.parametrize("name", sorted(load(GIVEN)["services"]))
def test_every_service_is_checked_restarted_and_started_after_what_it_needs(
    compose: dict[str, Any], name: str
) -> None:
    service = compose["services"][name]
    is_one_shot = name in ONE_SHOT
    assert ("healthcheck" in service) != is_one_shot
    assert service["restart"] == ("no" if is_one_shot else "unless-stopped")
    needs = {need: rule["condition"] for need, rule in service.get("depends_on", {}).items()}
    for need, condition in needs.items():
        assert condition == ("service_completed_successfully" if need in ONE_SHOT else "service_healthy")
    if name in OURS and not is_one_shot:
        assert set(needs) == {*STORES, *ONE_SHOT}
    if name in OURS:
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_a_worker_has_time_to_end_its_trainer_and_hand_its_cycle_back(compose: dict[str, Any]) -> None:
    for name in WORKERS:
        service = compose["services"][name]
        kill_grace_s = settings_from(service["environment"]).kill_grace_s
        assert seconds(service["stop_grace_period"]) >= 10 * kill_grace_s


def test_each_gpu_worker_holds_one_gpu_under_a_name_that_stays(compose: dict[str, Any]) -> None:
    gpu, cpu = (compose["services"][name] for name in WORKERS)
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert gpu["command"][-1] == "cuda:0"
    assert [gpu["hostname"], cpu["hostname"]] == list(WORKERS)
    assert [word.replace("cuda:0", "cpu:0") for word in gpu["command"]] == cpu["command"]
    assert cpu["profiles"] == ["cpu"]
    assert "utility" in read_dockerfile("Dockerfile.gpu").environment()["NVIDIA_DRIVER_CAPABILITIES"]


def test_a_read_only_container_still_has_a_folder_for_its_sign_of_life(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert "read_only" not in service or service["tmpfs"] == ["/tmp"]

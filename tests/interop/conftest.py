"""The peers' interpreter, and one of its processes for each peer: importing one takes seconds."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.environment import environment_folder, interpreter

SCRIPTS = Path(__file__).parent


def find_peers() -> Path:
    """Give the peers' interpreter; without one, skip the test, or fail it where `make interop` says so."""
    python = interpreter(environment_folder())
    if python is not None:
        return python
    reason = "SAELens and dictionary_learning are not installed: run `make interop`"
    if os.environ.get("DMSAE_INTEROP") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def run_peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[Path]], None]:
    """Run one of the scripts here on some folders, by the peers' interpreter, far from our code and hubs."""
    python, home = find_peers(), tmp_path_factory.mktemp("peer")

    def run(script: str, folders: list[Path]) -> None:
        done = subprocess.run(
            [python, SCRIPTS / script, *folders],
            cwd=home,
            env={"HOME": str(home), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr

    return run

"""The small parts of the worker: what a trainer sees, which models are allowed, who is watched how long."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from dmsae.errors import CycleFailed
from dmsae.service.leases import ExpiredLease
from dmsae.service.lineage_rows import check_lineage
from dmsae.service.process_marks import ProcessMark
from dmsae.service.results import Lineage
from dmsae.service.states import Held
from dmsae.service.workers import identify_worker
from tests.planting import make_lineage
from worker.__main__ import celery_arguments
from worker.device_lock import hold_device
from worker.processes import group_members, kill_group
from worker.sweeper import Watch
from worker.trainer import describe_exit, trainer_environment
from worker.work_folder import check_paths

HELD = Held("job_a", "cycle_a", 0, "attempt_a", 1, 5, "cpu")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_importing_the_worker_loads_no_torch_and_reads_no_environment() -> None:
    code = (
        "import sys, worker.app, worker.sweeper, worker.__main__\n"
        "assert worker.app.app.main == 'dmsae'\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DMSAE_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_a_trainer_gets_an_allow_listed_environment() -> None:
    given = {"PATH": "p", "OMP_NUM_THREADS": "2", "MKL_X": "1", "LANG": "C"}
    ways = ["HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE"]
    given.update(dict.fromkeys([*ways, "HTTP_PROXY", "http_proxy", "REQUESTS_CA_BUNDLE"], "way to the hub"))
    secret = {"DMSAE_DATABASE_URL": "x", "AWS_SECRET_ACCESS_KEY": "x", "PGPASSWORD": "x", "SHELL": "x"}
    environment = {**given, **secret, "CUDA_VISIBLE_DEVICES": "0,1"}
    assert trainer_environment(environment, visible_devices="GPU-a") == {
        **given,
        "CUDA_VISIBLE_DEVICES": "GPU-a",
    }


OUTSIDE = ["/elsewhere/model", "{root}/../model", "{root}-more", "{root}/sly", "{root}/sly/*.txt", "relative"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(
    ("param", "failure"), [("model.path", "model_unreadable"), ("data.text.paths.1", "data_unreadable")]
)
def test_what_lies_outside_the_allowed_roots_is_refused(
    tmp_path: Path, path: str, param: str, failure: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "sly").symlink_to(tmp_path)
    named = path.format(root=root)
    with pytest.raises(CycleFailed) as caught:
        check_paths(spec_of(param, named, inside=str(root / "fine.txt")), [root])
    assert (caught.value.failure, caught.value.param) == (failure, param)
    assert repr(named) in caught.value.message


def spec_of(param: str, path: str, *, inside: str) -> dict[str, Any]:
    if param == "model.path":
        return {"config": {"model": {"source": "local", "path": path}}}
    return {"config": {"data": {"text": {"source": "files", "paths": [inside, path]}}}}


def test_a_link_behind_a_wildcard_character_in_a_models_name_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a[b]").symlink_to(tmp_path)
    with pytest.raises(CycleFailed):
        check_paths(spec_of("model.path", str(root / "a[b]" / "model"), inside=""), [root])


def test_what_lies_under_an_allowed_root_or_comes_from_elsewhere_may_be_read(tmp_path: Path) -> None:
    model = {"source": "local", "path": str(tmp_path / "a" / "model.gguf")}
    text = {"source": "activations", "paths": [str(tmp_path / "**" / "*.safetensors")]}
    check_paths({"config": {"model": model, "data": {"text": text}}}, [Path("/nowhere"), tmp_path])
    check_paths({"config": {"model": {"source": "builtin", "name": "x"}}}, [])
    hub = {"source": "hub", "files": ["/etc/passwd"]}
    check_paths({"config": {"model": {"source": "hub"}, "data": {"text": hub}}}, [])


def lease(expires_at: datetime = NOW) -> ExpiredLease:
    return ExpiredLease(HELD, expires_at)


def test_a_lease_is_overdue_once_watched_for_a_whole_lease() -> None:
    watch = Watch(10, gap_s=6)
    assert watch.overdue([lease()], 0) == []
    assert watch.overdue([lease()], 5) == []
    assert watch.overdue([lease()], 10) == [lease()]


def test_a_renewal_a_gap_or_lost_contact_begins_the_watch_anew() -> None:
    renewed = lease(NOW + timedelta(seconds=1))
    watch = Watch(10, gap_s=6)
    watch.overdue([lease()], 0)
    watch.overdue([lease()], 5)
    assert watch.overdue([renewed], 10) == []
    assert watch.overdue([renewed], 17) == []
    assert watch.overdue([renewed], 22) == []
    watch.forget()
    assert watch.overdue([renewed], 27) == []


def test_one_host_and_device_make_one_worker_and_its_queues() -> None:
    worker = identify_worker("host", "cpu:1", memory_bytes=5)
    assert (worker.id, worker.resource_class) == ("host.cpu-1", "cpu")
    arguments = celery_arguments("cpu:1")
    queues = arguments[arguments.index("-Q") + 1].split(",")
    assert queues[0] == "class.cpu"
    assert queues[1].startswith("worker.")
    assert queues[1].endswith(".cpu-1")


def test_an_exit_is_told_in_words() -> None:
    assert "SIGKILL" in describe_exit(-9)
    assert "memory" in describe_exit(-9)
    assert "status 1" in describe_exit(1)


def test_a_process_is_told_from_a_later_one_of_the_same_number() -> None:
    mine = ProcessMark.of(os.getpid())
    assert mine.find() is not None
    assert not mine.is_reused()
    for other in (replace(mine, started_s=mine.started_s - 100), replace(mine, boot_id="an earlier boot")):
        assert other.find() is None
        assert other.is_reused()


def test_a_process_is_known_again_though_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, booted_at = ProcessMark.of(os.getpid()), psutil.boot_time()
    created_at = psutil.Process().create_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted_at + 3600)
    assert psutil.Process().create_time() == pytest.approx(created_at + 3600)
    assert mine.find() is not None
    assert ProcessMark.of(os.getpid()) == mine


def test_killing_a_group_reaches_members_that_left_the_group_but_not_the_session() -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0: os.setpgid(0, 0)\n"
        "print(flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    leader.stdout.readline()
    leader.stdout.readline()
    assert len(group_members(leader.pid)) == 2
    assert kill_group(leader.pid, grace_s=0.1)
    leader.wait(5)
    leader.stdout.close()
    assert group_members(leader.pid) == []


def test_a_device_is_held_once_and_free_again_afterwards(tmp_path: Path) -> None:
    with hold_device(tmp_path, "cpu:0", kill_grace_s=0) as first:
        assert first is not None
        with hold_device(tmp_path, "cpu:0", kill_grace_s=0) as second:
            assert second is None
        with hold_device(tmp_path, "cpu:1", kill_grace_s=0) as other:
            assert other is not None
    with hold_device(tmp_path, "cpu:0", kill_grace_s=0) as again:
        assert again is not None


def abandon_device(lock_dir: Path, children: list[subprocess.Popen[bytes]]) -> None:
    """Hold a device, start a child that inherits it, and break off."""
    with hold_device(lock_dir, "cpu:0", kill_grace_s=0) as lock:
        assert lock is not None
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        children.append(subprocess.Popen(sleeper, pass_fds=(lock.fd,)))
        raise ZeroDivisionError


def test_a_device_stays_held_while_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    children: list[subprocess.Popen[bytes]] = []
    with pytest.raises(ZeroDivisionError):
        abandon_device(tmp_path, children)
    try:
        with hold_device(tmp_path, "cpu:0", kill_grace_s=0) as second:
            assert second is None
    finally:
        children[0].kill()
        children[0].wait()
    with hold_device(tmp_path, "cpu:0", kill_grace_s=0) as third:
        assert third is not None


def test_a_lineage_must_agree_with_the_core_given() -> None:
    first = make_lineage(HELD, [], kept=[], new=[3, 4])
    check_lineage(HELD, Lineage.model_validate(first), given={})
    given = {entry["core_index"]: entry["latent_id"] for entry in first["core"]}
    later = Held("job_a", "cycle_b", 1, "attempt_b", 1, 6, "cpu")
    good = make_lineage(later, first["core"], kept=[1], new=[9])
    check_lineage(later, Lineage.model_validate(good), given=given)
    for spoil in (
        lambda x: x["dropped"].clear(),
        lambda x: x.update(cycle_index=0),
        lambda x: x["core"][0].update(latent_id="job_a.0.3"),
        lambda x: x["core"][1].update(origin_cycle=0),
        lambda x: x["core"][1].update(sae_index=8),
    ):
        bad = make_lineage(later, first["core"], kept=[1], new=[9])
        spoil(bad)
        with pytest.raises(CycleFailed, match="lineage"):
            check_lineage(later, Lineage.model_validate(bad), given=given)

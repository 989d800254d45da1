"""Which device a worker serves: every name it may be given, every way in which a GPU is hidden or missing."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest
from typer.testing import CliRunner

from dmsae import cli
from dmsae.errors import InvalidConfig
from worker.devices import find_device
from worker.machine import processor_name, usable_memory_bytes
from worker.redacting import Redactor
from worker.runtime import make_worker_identity
from worker.trainer import Trainer
from worker.trainer_output import TrainerOutput

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
UUIDS = ("GPU-aaa1-x", "GPU-aaa2-x", "GPU-bbb1-x")


class FakeNvml:
    """NVML of a host with three GPUs and one MIG slice; its errors are the real module's."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
    NVML_ERROR_NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
    NVML_ERROR_NOT_FOUND = pynvml.NVML_ERROR_NOT_FOUND
    NVML_ERROR_INVALID_ARGUMENT = pynvml.NVML_ERROR_INVALID_ARGUMENT

    def __init__(self, *, forbidden: tuple[int, ...] = (), shares_memory: bool = False) -> None:
        self.n_open = 0
        self.forbidden = forbidden
        self.shares_memory = shares_memory

    def nvmlInit(self) -> None:
        self.n_open += 1

    def nvmlShutdown(self) -> None:
        self.n_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index in self.forbidden:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("MIG-ccc1", "MIG-GPU-aaa1-x/1/0"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"NVIDIA {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        if self.shares_memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=(5 if handle.startswith("MIG") else 80) * GIB)


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(InvalidConfig) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.param == "device"
    return str(problem)


@pytest.mark.parametrize(
    "name", ["gpu:0", "cuda", "cpu", "cuda:-1", "cuda:01", "CUDA:0", "cuda:1000", "cpu:0 "]
)
def test_a_malformed_name_is_refused_with_field_value_and_rule(name: str) -> None:
    said = refusal(lambda: find_device(name, {}))
    assert said.startswith(f"device = {name!r}: must be cpu:N or cuda:N with N from 0 to 999")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, UUIDS),
        ("2,0", ("GPU-bbb1-x", "GPU-aaa1-x")),
        ("GPU-bbb,GPU-aaa2-x", ("GPU-bbb1-x", "GPU-aaa2-x")),
        ("MIG-ccc1", ("MIG-ccc1",)),
        ("1,7,0", ("GPU-aaa2-x",)),
        ("-1,0", ()),
        ("", ()),
        ("NoDevFiles", ()),
        ("GPU-aaa", ()),
        ("MIG-unknown", ()),
    ],
    ids=str,
)
def test_an_index_counts_what_cuda_would_see_and_becomes_the_uuid_that_the_trainer_sees(
    nvml: FakeNvml, visible: str | None, expected: tuple[str, ...]
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    for index, uuid in enumerate(expected):
        device = find_device(f"cuda:{index}", environ, nvml=nvml)
        assert (device.slot, device.visible_devices, device.model) == (uuid, uuid, f"NVIDIA {uuid}")
        assert device.memory_bytes == (5 if uuid.startswith("MIG") else 80) * GIB
    beyond = f"cuda:{len(expected)}"
    said = refusal(lambda: find_device(beyond, environ, nvml=nvml))
    assert said.startswith(f"device = {beyond!r}: must be one of the GPUs that this process sees: ")
    assert ("sees: none" in said) == (not expected)
    assert (f"CUDA_VISIBLE_DEVICES = {visible!r}" in said) == (visible is not None)
    assert nvml.n_open == 0


def test_a_device_beyond_those_present_is_refused_with_those_that_are_there(nvml: FakeNvml) -> None:
    said = refusal(lambda: find_device("cuda:99", {}, nvml=nvml))
    assert said.endswith("this process sees: cuda:0, cuda:1, cuda:2")


def test_a_slice_that_is_named_by_a_path_still_makes_a_file_name(nvml: FakeNvml) -> None:
    device = find_device("cuda:0", {"CUDA_VISIBLE_DEVICES": "MIG-GPU-aaa1-x/1/0"}, nvml=nvml)
    assert (device.slot, device.visible_devices) == ("MIG-GPU-aaa1-x-1-0", "MIG-GPU-aaa1-x/1/0")


def test_gpus_that_a_cgroup_hides_are_not_counted() -> None:
    device = find_device("cuda:0", {}, nvml=FakeNvml(forbidden=(0, 1)))
    assert device.slot == "GPU-bbb1-x"


def test_a_gpu_without_memory_of_its_own_registers_none() -> None:
    assert find_device("cuda:0", {}, nvml=FakeNvml(shares_memory=True)).memory_bytes is None


def test_two_allocations_of_one_host_make_two_workers_although_both_say_cuda_0(nvml: FakeNvml) -> None:
    first, second = (
        make_worker_identity(find_device("cuda:0", {"CUDA_VISIBLE_DEVICES": visible}, nvml=nvml))
        for visible in "01"
    )
    assert first.id.endswith(".GPU-aaa1-x")
    assert second.id.endswith(".GPU-aaa2-x")
    assert (first.device, first.resource_class, first.device_name) == ("cuda:0", "gpu", "NVIDIA GPU-aaa1-x")


def test_a_cpu_slot_has_the_processors_name_and_no_gpu() -> None:
    device = find_device("cpu:3", {"CUDA_VISIBLE_DEVICES": "0"})
    assert (device.slot, device.visible_devices) == ("cpu-3", "")
    assert device.model
    assert device.memory_bytes is not None
    assert 0 < device.memory_bytes <= psutil.virtual_memory().total


def test_a_trainer_sees_the_one_gpu_that_its_worker_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    code = "import os, pathlib; pathlib.Path('seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    output = TrainerOutput(Redactor([]))
    with open(os.devnull, "rb") as lock:
        trainer = Trainer(
            [sys.executable, "-c", code], folder=tmp_path, lock_fd=lock.fileno(), output=output,
            visible_devices="GPU-aaa1-x",
        )  # fmt: skip
        while trainer.exit_status() is None:
            time.sleep(0.01)
        assert trainer.stop(grace_s=0)
    assert (tmp_path / "seen").read_text() == "GPU-aaa1-x"


def test_the_command_line_refuses_a_malformed_name_before_it_looks_for_a_stack() -> None:
    found = CliRunner().invoke(cli.app, ["worker", "--device", "gpu:0"])
    assert "device = 'gpu:0': must be cpu:N or cuda:N" in refusal_of(found.exception)


def refusal_of(error: BaseException | None) -> str:
    assert isinstance(error, InvalidConfig)
    return error.message


def has_driver() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has NVIDIA's driver")
def test_a_worker_without_nvidias_driver_ends_at_once_and_says_so() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "worker", "--device", "cuda:0"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 2
    assert "device = 'cuda:0': needs NVIDIA's driver, which does not answer here" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_processors_name_is_the_kernels_or_else_that_of_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "intel").write_text(
        "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Xeon 9\nmodel name\t: other\n"
    )
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert processor_name(tmp_path / "intel") == "Xeon 9"
    assert processor_name(tmp_path / "arm") == processor_name(tmp_path / "absent") != ""


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "5000"}, 5000),
        ("0::/a/b", {"a/b/memory.max": "3000", "a/memory.max": "5000"}, 3000),
        ("0::/", {"memory.max": "7000"}, 7000),
        ("0::/host/path", {"memory.max": "7000"}, 7000),
        ("4:cpu,memory:/job\n0::/", {"memory/job/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/a", {"a/memory.max": "max"}, None),
        ("", {}, None),
    ],
    ids=["above", "own", "namespace", "unseen path", "version 1", "version 1 without limit", "max", "none"],
)
def test_usable_memory_is_the_least_limit_of_the_machine_and_all_cgroups(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "cgroup").write_text(membership + "\n" if membership else "")
    for name, text in limits.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    found = usable_memory_bytes(membership=tmp_path / "cgroup", cgroups=tmp_path / "fs")
    assert found == (psutil.virtual_memory().total if expected is None else expected)


def test_a_machine_without_cgroups_offers_all_its_memory(tmp_path: Path) -> None:
    assert usable_memory_bytes(membership=tmp_path / "none") == psutil.virtual_memory().total

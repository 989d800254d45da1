"""Which device does a worker serve, and what is it? Asked of NVML or of this machine, without torch.

`cuda:N` is the N-th device that `CUDA_VISIBLE_DEVICES` leaves (all, if unset), in the order of nvidia-smi.
From then on a GPU goes by its UUID: two allocations of one host may both call theirs `cuda:0`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.workers import parse_device
from worker.machine import processor_name, usable_memory_bytes

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """One device of this machine."""

    name: str
    """What the worker was told: `cpu:0`, `cuda:1`."""
    slot: str
    """What tells it from every other device of this host: `cpu-0`, or a GPU's UUID."""
    model: str
    """What its maker calls it."""
    memory_bytes: int | None
    """None where a GPU shares the machine's memory and so has none of its own."""
    visible_devices: str
    """`CUDA_VISIBLE_DEVICES` of its trainer: this GPU alone, or none."""


def find_device(name: str, environ: Mapping[str, str], *, nvml: Any = pynvml) -> Device:
    """Find a device of this machine by its name.

    Raises:
        InvalidConfig: the name is malformed, or there is no such device.
    """
    kind, index = parse_device(name)
    if kind == "cpu":
        return Device(name, f"cpu-{index}", processor_name(), usable_memory_bytes(), "")
    try:
        with _open(nvml):
            return _find_gpu(name, index, environ.get(VISIBLE), nvml)
    except nvml.NVMLError as error:
        raise _refuse(name, f"needs NVIDIA's driver, which does not answer here ({error})") from error


def _find_gpu(name: str, index: int, visible: str | None, nvml: Any) -> Device:
    handles = _visible_handles(visible, nvml)
    if index >= len(handles):
        seen = ", ".join(f"cuda:{i}" for i in range(len(handles))) or "none"
        within = "" if visible is None else f" ({VISIBLE} = {visible!r})"
        raise _refuse(name, f"must be one of the GPUs that this process sees: {seen}{within}")
    handle = handles[index]
    uuid = nvml.nvmlDeviceGetUUID(handle)
    slot = uuid.replace("/", "-")  # older drivers name a MIG slice by a path
    return Device(name, slot, nvml.nvmlDeviceGetName(handle), _memory_bytes(handle, nvml), uuid)


def _visible_handles(visible: str | None, nvml: Any) -> list[Any]:
    """Give the devices that CUDA would see, up to the first entry that names none, as CUDA does."""
    present = list(_present_handles(nvml))
    if visible is None:
        return present
    found = []
    for entry in visible.split(","):
        handle = _named_handle(entry.strip(), present, nvml)
        if handle is None:
            break
        found.append(handle)
    return found


def _present_handles(nvml: Any) -> Iterator[Any]:
    """Give the GPUs that this process may use; a container or a Slurm job may use fewer than there are."""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            yield nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:
                raise


def _named_handle(entry: str, present: list[Any], nvml: Any) -> Any:
    """Find what one entry names: an index, the beginning of a GPU's UUID, or a MIG slice's."""
    if entry.isascii() and entry.isdigit():
        return present[int(entry)] if int(entry) < len(present) else None
    if entry.startswith("GPU-"):
        matching = [handle for handle in present if nvml.nvmlDeviceGetUUID(handle).startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    if not entry.startswith("MIG-"):
        return None
    try:
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    except nvml.NVMLError as error:
        if error.value not in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT):
            raise
        return None


def _memory_bytes(handle: Any, nvml: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        return None


@contextmanager
def _open(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _refuse(name: str, rule: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem("device", name, rule, "device_unavailable")])

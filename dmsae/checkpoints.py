"""How does a cycle lie on disk in the middle of its training, for another process to go on to the bit?

A folder with one safetensors file for each tensor, and `checkpoint.json`, which names them with their hashes
and holds all else. It is written beside its place and then renamed: what has the name is whole. When one is
due is decided here too; what it holds is up to `resuming.py`, what becomes of it to who reads the trainer's
lines.
"""

import hashlib
import json
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dmsae.config import CycleSpec
from dmsae.errors import DmsaeError

FORMAT = "dmsae-checkpoint-1"
"""Changes whenever a checkpoint written before could no longer be continued to the bit."""
FACTS = "checkpoint.json"
LAST_SHARE = 0.1
"""After the last step one is due for this share of the time between two: what follows may take as long."""


class CheckpointRefused(DmsaeError):
    """This checkpoint does not fit the cycle, or is not whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole and of this very cycle; its tensors are still on disk."""

    folder: Path
    step: int
    """Steps done."""
    notes: dict[str, Any]
    """What is plain JSON, beside the state of training."""
    packed: Any
    """The state, with names of files in the place of tensors."""

    def load_state(self) -> Any:
        """Read the state as it was given to `save_checkpoint`, tensors on the CPU.

        Raises: CheckpointRefused.
        """
        try:
            return _unpack(self.packed, self.folder)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointRefused(f"its state cannot be read ({type(error).__name__})") from error


class Checkpoints:
    """Says when one is due, by the seconds of work or because somebody asked, and writes it into `folder`."""

    def __init__(self, folder: Path, *, every_s: float, is_asked: threading.Event | None = None) -> None:
        """Have one written every so many seconds, and whenever `is_asked` is set from outside."""
        self._folder, self._every_s = folder, every_s
        self._is_asked = threading.Event() if is_asked is None else is_asked
        self._since = time.monotonic()

    def start_watch(self) -> None:
        """Count the seconds anew."""
        self._since = time.monotonic()

    def is_due(self, step: int, *, n_steps: int) -> bool:
        """Whether one is to be written after `step` steps."""
        wait_s = self._every_s if step < n_steps else LAST_SHARE * self._every_s
        return self._is_asked.is_set() or time.monotonic() - self._since >= wait_s

    def write(self, step: int, state: Any, *, notes: dict[str, Any], fingerprint: str) -> Path:
        """Write a checkpoint that is due and give its folder.

        Raises: OSError where it cannot be written; nothing of it is left.
        """
        self._is_asked.clear()
        self.start_watch()
        folder = self._folder / f"step-{step}"
        save_checkpoint(folder, state, step=step, notes=notes, fingerprint=fingerprint)
        return folder


def fingerprint_of(spec: CycleSpec, *folders: Path | None) -> str:
    """Name all that decides what a cycle trains: the settings, and the folders of what it starts from.

    Settings left to their defaults are left out, so that a later version, with more of them, goes on.
    """
    given = json.dumps(spec.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    digest = hashlib.sha256(given.encode())
    for folder in folders:
        for file in sorted(folder.rglob("*.json")) if folder is not None else ():
            digest.update(file.read_bytes())  # a core's holds the hash of its tensors
    return digest.hexdigest()


def hardware_of(device: torch.device) -> dict[str, Any]:
    """Give what the bits of a sum depend on beside the settings."""
    is_gpu = device.type == "cuda"
    return {
        "machine": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "n_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_gpu else str(device),
        "torch": torch.__version__,
    }


def save_checkpoint(folder: Path, state: Any, *, step: int, notes: dict[str, Any], fingerprint: str) -> None:
    """Write a checkpoint into the new `folder`, one tensor after the other.

    `state` is made of dicts, lists, tuples, tensors and plain values; `notes` is plain JSON.

    Raises: OSError; nothing of it is left.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        hashes: dict[str, str] = {}
        packed = _pack(state, "state", partial, hashes)
        facts = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "step": step,
            "notes": notes,
            "hashes": hashes,
            "state": packed,
        }
        (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        partial.rename(folder)
    except SafetensorError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(str(error)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_checkpoint(folder: Path, *, fingerprint: str) -> Checkpoint:
    """Open a checkpoint of the cycle with this fingerprint, every hash compared.

    Raises: CheckpointRefused, which says why.
    """
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise CheckpointRefused(f"it is not of format {FORMAT}")
        if facts["fingerprint"] != fingerprint:
            raise CheckpointRefused("it is of other settings or of another core")
        for name, digest in facts["hashes"].items():
            if _digest(folder / name) != digest:
                raise CheckpointRefused(f"{name} is not the file that it was written with")
        return Checkpoint(folder, int(facts["step"]), dict(facts["notes"]), facts["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(f"it is not whole ({type(error).__name__})") from error


def _pack(value: Any, name: str, folder: Path, hashes: dict[str, str]) -> Any:
    """Write the tensors of a value into files named after their places, and give the rest as JSON."""
    if isinstance(value, Tensor):
        file = f"{name}.safetensors"
        safetensors.torch.save_file({"tensor": value.detach().cpu().contiguous()}, folder / file)
        hashes[file] = _digest(folder / file)
        return {"tensor": file}
    if isinstance(value, dict):
        items = [[key, _pack(each, f"{name}.{key}", folder, hashes)] for key, each in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(each, f"{name}.{i}", folder, hashes) for i, each in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DmsaeError(f"{name} = {type(value).__name__}: a checkpoint cannot hold this")


def _unpack(packed: Any, folder: Path) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return safetensors.torch.load_file(folder / content)["tensor"]
    if kind == "dict":
        return {key: _unpack(each, folder) for key, each in content}
    items: Iterator[Any] = (_unpack(each, folder) for each in content)
    return list(items) if kind == "list" else tuple(items)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

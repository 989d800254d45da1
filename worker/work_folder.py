"""What does a trainer start from, and where do its results go? One attempt's folder on this machine."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmsae.errors import CycleFailed, InvalidConfig
from dmsae.service.allowed_paths import allowed_path
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings

MANIFEST = "manifest.json"


class WorkFolder:
    """Scratch folder of the one attempt that a device runs; emptied before and after."""

    def __init__(self, work_dir: Path, device: str) -> None:
        self.path = work_dir / device.replace(":", "-")
        self.spec = self.path / "spec.json"
        self.core = self.path / "core"
        self.out = self.path / "out"

    def prepare(self, claim: Claim, objects: ObjectStore) -> None:
        """Write the spec and fetch the core that the cycle starts from.

        Raises:
            Unavailable: the store does not answer.
            OSError: the disk is full or the folder cannot be written.
        """
        self.clear()
        self.path.mkdir(parents=True, mode=0o700)
        self.out.mkdir()
        self.spec.write_text(json.dumps(claim.spec))
        for file in claim.input_files:
            path = self.path / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            objects.get_file(file.object_key, path, sha256=file.sha256)

    def arguments(self, claim: Claim, settings: Settings, *, inputs: Path) -> list[str]:
        """Give the trainer's arguments; `inputs` holds the objects that it reads."""
        core = ["--core", str(self.core)] if claim.input_files else []
        roots = [part for root in settings.allowed_roots for part in ("--allowed-root", str(root))]
        folders = ["--cache", str(settings.cache_dir), "--inputs", str(inputs)]
        room = ["--activation-cache-bytes", str(settings.activation_cache_bytes)]
        return [str(self.spec), str(self.out), *core, *folders, *room, *roots, "--supervised"]

    def upload(
        self, claim: Claim, objects: ObjectStore, *, has_stopped: Callable[[], bool]
    ) -> tuple[StoredFile, ...]:
        """Store all results under this attempt's prefix, the manifest last; stop between two files if told.

        Raises:
            Unavailable: the store does not answer.
        """
        stored: list[StoredFile] = []
        for path in sorted(p for p in self.out.rglob("*") if p.is_file() and not p.is_symlink()):
            if has_stopped():
                return ()
            stored.append(self._put(claim, objects, path))
        manifest = self.out / MANIFEST
        listed: list[dict[str, Any]] = [
            {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in stored
        ]
        manifest.write_text(json.dumps({"files": listed}, indent=1))
        return (*stored, self._put(claim, objects, manifest))

    def clear(self) -> None:
        """Remove everything that this device's attempts left here."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _put(self, claim: Claim, objects: ObjectStore, path: Path) -> StoredFile:
        name = path.relative_to(self.out).as_posix()
        stored = objects.put_file(claim.object_prefix + name, path)
        return StoredFile(name, stored.key, stored.size_bytes, stored.sha256)


def check_paths(spec: dict[str, Any], allowed_roots: Sequence[Path]) -> None:
    """Refuse a local model or text files outside this worker's allowed roots, links followed.

    Of a glob the part before its first wildcard is looked at; what it finds, the trainer checks one by one.

    Raises:
        CycleFailed: `model_unreadable` or `data_unreadable`, naming the path.
    """
    model, text = (spec["config"].get(name, {}) for name in ("model", "data"))
    text = text.get("text", {})
    if model.get("source") == "local":
        resolved = _check_path(model["path"], allowed_roots, param="model.path", failure="model_unreadable")
        _check_path(str(resolved), allowed_roots, param="model.path", failure="model_unreadable")
    if text.get("source") in ("files", "activations"):
        for index, path in enumerate(text["paths"]):
            _check_path(path, allowed_roots, param=f"data.text.paths.{index}", failure="data_unreadable")


def _check_path(path: str, allowed_roots: Sequence[Path], *, param: str, failure: str) -> Path:
    try:
        return allowed_path(path, allowed_roots, param=param)
    except InvalidConfig as error:
        raise CycleFailed(failure, f"{error.message}.", param=param) from error

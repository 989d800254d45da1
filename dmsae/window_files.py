"""How are harvested training windows kept on disk from one cycle to the next?

The cycles of a distillation read the same activations, and harvesting them is slow. Files belong
to all that decides their bits, appear whole or not at all, and may be deleted at any time: what is missing or
torn is harvested again.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmsae.activations import Harvester, lay_windows
from dmsae.contexts import Contexts

KEPT_FOLDERS = 4
"""The most recently used stay; each holds one training part."""

MAX_PART_BYTES = 2 * 2**30
"""A larger training part is not kept at all."""


class WindowFiles:
    """The windows of one training part, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, window: int) -> Float[Tensor, "n_tokens d_model"] | None:
        """Give a window as it was written, bit for bit; None where there is no whole file of it."""
        try:
            return load_file(self._file(window))["tokens"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, window: int, tokens: Float[Tensor, "n_tokens d_model"]) -> None:
        """Keep a window."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f"{window}.{os.getpid()}.unfinished"
        try:
            save_file({"tokens": tokens}, unfinished)
            os.replace(unfinished, self._file(window))
        finally:
            unfinished.unlink(missing_ok=True)

    def _file(self, window: int) -> Path:
        return self._folder / f"{window}.safetensors"


def open_window_files(cache_dir: Path, harvester: Harvester, contexts: Contexts) -> WindowFiles | None:
    """Open the files of a training part, making room for them; None where the part is too large to keep.

    Mutates: deletes the least recently used folders of other parts.
    """
    if contexts.input_ids.numel() * harvester.loaded.d_model * 4 > MAX_PART_BYTES:
        return None
    root = cache_dir / "activations"
    folder = root / _key(harvester, contexts)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    # another trainer may be deleting the same ones
    by_age = sorted((each for each in root.iterdir() if each != folder), key=_last_used, reverse=True)
    for old in by_age[KEPT_FOLDERS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return WindowFiles(folder)


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _key(harvester: Harvester, contexts: Contexts) -> str:
    """Name everything that decides the bits of a harvest, the kernels of torch included."""
    config, loaded = harvester.config, harvester.loaded
    size = config.shuffle_window_contexts
    decisive = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        loaded.revision,
        loaded.special_ids,
        harvester.hook,
        loaded.dtype,
        loaded.attention,
        _device_name(loaded.device),
        config.model_batch_contexts,
        [(window.start, window.stop) for window in lay_windows(len(contexts.input_ids), size)],
        tuple(contexts.input_ids.shape),
    )
    digest = hashlib.sha256(repr(decisive).encode())
    digest.update(contexts.input_ids.numpy().tobytes())
    digest.update(contexts.is_token.numpy().tobytes())
    return digest.hexdigest()

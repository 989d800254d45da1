"""Which activations are kept in the cache of a worker, and what decides their bits?

Training windows, rounded as training sees them, and the batches of attribution and evaluation as the model
gave them: so the model runs once over the tokens of a distillation. How files are kept is the business of
`activation_cache.py`.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.activation_cache import ActivationCache, CacheFolder
from dmsae.activations import Dropped, Harvester
from dmsae.contexts import Contexts
from dmsae.rounding import Halves, RoundingError, bytes_per_token
from dmsae.windows import Count, HarvestedWindows, Window

FORMAT = "v1"
"""Changes whenever the same harvest would give other bytes."""

FIELDS = ("halves", "exponents", "norms")
"""Tensors of a window's file."""


class KeptWindows:
    """The windows of one training part; a `Store`."""

    def __init__(self, folder: CacheFolder) -> None:
        self._folder = folder

    @property
    def trouble(self) -> str | None:
        """Why not all windows can be kept, as far as is known, or None."""
        return self._folder.trouble

    def read(self, window: int) -> Window | None:
        """Give a window as it was written, mapped into memory; None where there is no whole file of it."""
        found = self._folder.read(str(window), FIELDS)
        if found is None:
            return None
        (halves, exponents, norms), about = found
        error = RoundingError(*map(float.fromhex, about["error"].split()))
        return Window(Halves(halves, exponents), norms, error)

    def read_norms(self, window: int) -> Float[Tensor, " n"] | None:
        """Give the norms of a window's tokens alone, or None."""
        found = self._folder.read(str(window), FIELDS[-1:])
        return None if found is None else found[0][0]

    def write(self, window: int, content: Window) -> Window | None:
        """Keep a window and give it as it lies on disk; None where it, and so any other, cannot be kept."""
        tensors = dict(zip(FIELDS, (*content.tokens, content.norms), strict=True))
        about = {"error": " ".join(each.hex() for each in content.error)}
        is_kept = self._folder.write(str(window), tensors, about)
        return self.read(window) if is_kept else None

    def read_counts(self, max_norm: float) -> list[Count]:
        """Give what was counted in the first windows at a norm limit."""
        counts = self._folder.read_json(_counts_name(max_norm)) or []
        return [Count(n_kept, Dropped(*dropped)) for n_kept, dropped in counts]

    def write_counts(self, max_norm: float, counts: list[Count]) -> None:
        """Keep what was counted in the first windows at a norm limit, unless more is known."""
        if len(counts) > len(self.read_counts(max_norm)):
            self._folder.write_json(_counts_name(max_norm), counts)

    def claim(self, window: int, *, is_stopped: Callable[[], bool]) -> AbstractContextManager[None]:
        """Let nobody else harvest a window at the same time: who comes second waits and reads it."""
        return self._folder.claim(str(window), is_stopped=is_stopped)

    def close(self) -> None:
        """Let others delete them."""
        self._folder.close()


class KeptBatches:
    """The batches of a part that is measured on, float32, at all positions."""

    def __init__(self, folder: CacheFolder) -> None:
        self._folder = folder

    @property
    def trouble(self) -> str | None:
        """Why not all batches can be kept, as far as is known, or None."""
        return self._folder.trouble

    def read(self, first_context: int) -> Float[Tensor, "n t d_model"] | None:
        """Give the batch that begins at a context, or None."""
        found = self._folder.read(str(first_context), ("activations",))
        return None if found is None else found[0][0]

    def write(self, first_context: int, activations: Float[Tensor, "n t d_model"]) -> None:
        """Keep a batch, if there is room."""
        self._folder.write(str(first_context), {"activations": activations.contiguous()}, {})

    def close(self) -> None:
        """Let others delete them."""
        self._folder.close()


def keep_windows(cache: ActivationCache, source: HarvestedWindows) -> KeptWindows:
    """Open the place of a training part.

    Raises: OSError where nothing can be written there.
    """
    n_bytes = source.n_tokens * bytes_per_token(source.d_model)
    return KeptWindows(cache.open(windows_key(source), n_bytes=n_bytes))


def keep_batches(cache: ActivationCache, harvester: Harvester, contexts: Contexts) -> KeptBatches:
    """Open the place of a part that is measured on.

    Raises: OSError where nothing can be written there.
    """
    digest = hashlib.sha256(repr(("batches", _decisive(harvester))).encode())
    _add_contexts(digest.update, contexts)
    return KeptBatches(cache.open(digest.hexdigest(), n_bytes=0))


def windows_key(source: HarvestedWindows) -> str:
    """Name everything that decides the bits of a training part's windows."""
    places = [(window.start, window.stop) for window in source.slices]
    digest = hashlib.sha256(repr(("windows", _decisive(source.harvester), places)).encode())
    for window in range(source.n_windows):
        _add_contexts(digest.update, source.contexts(window))
    return digest.hexdigest()


def _decisive(harvester: Harvester) -> tuple[object, ...]:
    """Give everything beside the contexts that decides the bits of a harvest, torch's kernels included."""
    config, loaded = harvester.config, harvester.loaded
    return (
        FORMAT,
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
    )


def _add_contexts(add: Callable[[bytes], None], contexts: Contexts) -> None:
    is_foreign = contexts.document_index < 0
    for field in (contexts.input_ids.to(torch.int32), contexts.is_token, is_foreign):
        add(repr(tuple(field.shape)).encode() + field.contiguous().numpy().tobytes())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _counts_name(max_norm: float) -> str:
    return f"counts-{float(max_norm).hex()}"

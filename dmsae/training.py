"""How is one SAE trained: the loop, which latents are dead, what a step shows?

The losses are in `losses.py`, which latents are active is in `sparsity.py`. How a step is computed is left to
`sparse_step.py`, `gpu_step.py` and `plain_step.py`, where activations come from to the stream, when to report
or to stop to the caller.
"""

import copy
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import CycleConfig, TrainingConfig
from dmsae.errors import CycleFailed, DmsaeError
from dmsae.losses import Losses, total_loss, variance
from dmsae.micro_step import MicroStep
from dmsae.plain_step import PlainStep
from dmsae.randomness import named_generator
from dmsae.sae import Core, MatryoshkaSae, init_sae
from dmsae.sparse_step import SparseStep
from dmsae.sparsity import Calibration, Sparsity, calibrate
from dmsae.steps import Selected, Step
from dmsae.stream import ThresholdTokens

CPU = torch.device("cpu")
MAX_WARMUP_STEPS = 1000
"""Warm-up where none is given: this or 2% of the steps, the smaller (METHOD 6)."""
MAX_DEAD_AFTER_TOKENS = 10_000_000
"""When a latent counts as dead where not given: this or 10% of the tokens, the smaller (METHOD 5)."""


@runtime_checkable
class Stream(Protocol):
    """Batches of x_n, float32 (batch_tokens, d_model), all equally long, in an order that never varies."""

    @property
    def n_steps(self) -> int:
        """Number of whole batches of the cycle."""

    def __iter__(self) -> Iterator[Tensor]:
        """Give itself."""

    def __next__(self) -> Tensor:
        """Give the next batch."""

    def seek(self, step: int, /) -> None:
        """Make the batch of `step` the next one."""

    def for_threshold(self, n_tokens: int, /) -> ThresholdTokens:
        """Give about `n_tokens` tokens for the inference threshold, without any change to the position."""

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position that `state_dict` gave."""


class Progress(NamedTuple):
    """What one step shows, of this step's batch where not said otherwise."""

    step: int
    """Steps done."""
    n_steps: int
    n_tokens: int
    """Tokens trained on so far."""
    loss: float
    """What was minimised, the dead latents' part with its weight."""
    aux_loss: float
    """The dead latents' part without its weight."""
    l0: float
    """Mean number of active latents of a token."""
    l0_core: float
    explained_variance: float | None
    """1 - E||x - x_hat||^2 / E||x - E x||^2 of the widest prefix; None where the batch does not vary."""
    explained_variance_first: float | None
    """The same of the most nested prefix."""
    dead_fraction: float
    """Share of the latents that count as dead."""
    clipped_fraction: float
    """Share of all steps so far whose gradient was clipped."""
    lr: float


def learning_rate(config: TrainingConfig, step: int, *, n_steps: int) -> float:
    """Give the learning rate of `step` (from 0): a linear rise, then level, then a linear fall (METHOD 6)."""
    n_warmup = config.warmup_steps
    if n_warmup is None:
        n_warmup = min(MAX_WARMUP_STEPS, n_steps // 50)
    n_decay = config.lr_decay_fraction * n_steps
    rise = (step + 1) / n_warmup if step < n_warmup else 1.0
    fall = (n_steps - step) / n_decay if n_steps - step < n_decay else 1.0
    return config.lr * min(rise, fall)


def make_step(start: MatryoshkaSae, config: CycleConfig, *, device: torch.device) -> Step:
    """Make what trains `start` on `device`, as `training.step` says.

    Raises: CycleFailed(device_unavailable) where the fast step of a GPU lacks what it needs.
    """
    if not config.has_fast_step:
        return PlainStep(start.to(device), config)
    if device.type == "cpu":
        return SparseStep(start, config)
    _require_triton()
    from dmsae.gpu_step import GpuStep  # only the builds of torch for a GPU bring Triton

    return GpuStep(start.to(device), config)


def _require_triton() -> None:
    found = {
        "Triton, which comes with torch for a GPU,": importlib.util.find_spec("triton"),
        "a C compiler (gcc or clang)": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "the headers of Python": (Path(sysconfig.get_path("include")) / "Python.h").exists(),
    }
    for needed, is_there in found.items():
        if not is_there:
            rule = f"on a GPU it needs {needed} and finds none; 'plain' does without"
            raise CycleFailed("device_unavailable", f"training.step = 'fast': {rule}", param="training.step")


class Trained(NamedTuple):
    """What a cycle's training leaves."""

    sae: MatryoshkaSae
    """With its inference threshold, on the device that trained it."""
    calibration: Calibration
    n_threshold_attribution: int
    """Tokens of the calibration that are of the attribution part."""
    noncore_budget: float
    """Mean over the steps: how many activations a token might keep where the budget holds."""


class Trainer:
    """Trains one SAE step by step (METHOD 2, 4 to 7): same arguments and thread count, same bits.

    All randomness is in the start, drawn on the CPU whatever the device; a step draws nothing. Parameters,
    Adam's state and all counts are on `device`.

    Raises: CycleFailed where data or core do not fit: dataset_exhausted, core_empty, core_too_large,
    core_mismatch.
    """

    def __init__(
        self,
        config: CycleConfig,
        core: Core | None,
        stream: Stream,
        *,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        self.step, self.n_steps = 0, stream.n_steps
        self._config, self._stream, self._device = config, stream, device
        first_batch = self._first_batch()
        self._batch_tokens, d_model = first_batch.shape
        generator = named_generator(seed, "sae_start")
        start = init_sae(config.layout, d_model, core=core, first_batch=first_batch, generator=generator)
        self._sparsity = Sparsity.of(config.sae, n_core=start.n_core)
        self._n_core = start.n_core
        self._stepper = make_step(start, config, device=device)
        self._dead_after_tokens = config.training.dead_after_tokens or max(
            1, min(MAX_DEAD_AFTER_TOKENS, self.n_steps * self._batch_tokens // 10)
        )
        self._tokens_since_selected = torch.zeros(config.sae.n_latents, dtype=torch.int64, device=device)
        self._n_clipped, self._n_budget = 0, 0

    @property
    def _parameters(self) -> dict[str, Tensor]:
        return self._stepper.parameters

    def run(self) -> Iterator[Progress]:
        """Train to the end, from wherever training stands; may be left and called again after any step.

        Raises: CycleFailed(dataset_exhausted) where the stream ends early, CycleFailed(non_finite).
        """
        while self.step < self.n_steps:
            yield self._train_step(self._next_batch())

    def finish(self) -> Trained:
        """Give the trained SAE with its inference threshold, from the tokens that the stream gives for it.

        Leaves trainer and stream as they were.

        Raises: DmsaeError before the last step.
        """
        if self.step < self.n_steps:
            raise DmsaeError(f"step = {self.step}: the SAE is finished only after all {self.n_steps} steps")
        encode = None
        if isinstance(self._stepper, SparseStep):
            self._stepper.forget()
            encode = self._stepper.encode_above
        sae, tokens = self.sae(), self._stream.for_threshold(self._config.training.threshold_tokens)
        calibration = calibrate(sae, tokens.batches, self._sparsity, n_tokens=tokens.n_tokens, encode=encode)
        return Trained(
            replace(sae, threshold=calibration.threshold),
            calibration,
            n_threshold_attribution=tokens.n_attribution,
            noncore_budget=self._n_budget / (self.n_steps * self._batch_tokens),
        )

    def split_batches(self, n_parts: int) -> bool:
        """Take losses and gradients over parts of each batch, in less memory; before the first step only.

        Says whether that can be: a step over the active latents alone has no such matrices.
        """
        if not isinstance(self._stepper, PlainStep):
            return False
        self._stepper = MicroStep(self._stepper.sae(), self._config, n_parts=n_parts)
        return True

    def sae(self) -> MatryoshkaSae:
        """Copy the SAE as it stands, without a threshold (all 0)."""
        return self._stepper.sae()

    def state_dict(self) -> dict[str, Any]:
        """Copy all that decides how training goes on, the stream's position included."""
        return copy.deepcopy(self.view_state())

    def view_state(self) -> dict[str, Any]:
        """Give the same as `state_dict`, not copied: it holds until the next step."""
        return {
            "step": self.step,
            "n_clipped": self._n_clipped,
            "n_budget": self._n_budget,
            "tokens_since_selected": self._tokens_since_selected,
            **self._stepper.state_dict(),
            "stream": self._stream.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, by a trainer made with the same arguments."""
        state = copy.deepcopy(state)
        self.step = state["step"]
        self._n_clipped, self._n_budget = state["n_clipped"], state["n_budget"]
        self._tokens_since_selected = state["tokens_since_selected"].to(self._device)
        self._stepper.load_state_dict(state)
        self._stream.load_state_dict(state["stream"])

    def _train_step(self, x: Float[Tensor, "batch d_model"]) -> Progress:
        config = self._config.training
        lr = learning_rate(config, self.step, n_steps=self.n_steps)

        selected = self._stepper.select(x)
        self._n_budget += selected.budget
        self._count_selected(selected, n_tokens=len(x))
        losses = self._stepper.losses(is_dead=self._is_dead())
        is_mean = self._config.sae.prefix_loss == "mean"
        loss = total_loss(losses, aux_coefficient=config.aux_coefficient, is_mean=is_mean)
        self._require_finite(x=x, loss=loss)
        norm = self._stepper.update(loss, lr=lr)
        if not norm.isfinite():
            slopes = {f"{name}.grad": slope for name, slope in self._stepper.gradients().items()}
            self._require_finite(**slopes, norm=norm)

        self.step += 1
        self._n_clipped += int(norm > config.grad_clip_norm)
        return self._progress(x, selected, losses=losses, loss=loss, lr=lr)

    def _count_selected(self, selected: Selected, *, n_tokens: int) -> None:
        """Count the tokens since each latent was selected; the exempt need no selection and never die."""
        self._tokens_since_selected += n_tokens
        self._tokens_since_selected[selected.n_active > 0] = 0
        self._tokens_since_selected[: self._sparsity.n_exempt] = 0

    def _is_dead(self) -> Bool[Tensor, " n_latents"]:
        return self._tokens_since_selected >= self._dead_after_tokens

    def _progress(
        self,
        x: Float[Tensor, "batch d_model"],
        selected: Selected,
        *,
        losses: Losses,
        loss: Float[Tensor, ""],
        lr: float,
    ) -> Progress:
        n_active, total = selected.n_active, variance(x).item()
        shares = [1 - error / total if total > 0 else None for error in losses.prefixes.tolist()]
        return Progress(
            step=self.step,
            n_steps=self.n_steps,
            n_tokens=self.step * self._batch_tokens,
            loss=loss.item(),
            aux_loss=losses.dead.item(),
            l0=n_active.sum().item() / len(x),
            l0_core=n_active[: self._n_core].sum().item() / len(x),
            explained_variance=shares[-1],
            explained_variance_first=shares[0],
            dead_fraction=self._is_dead().double().mean().item(),
            clipped_fraction=self._n_clipped / self.step,
            lr=lr,
        )

    def _next_batch(self) -> Float[Tensor, "batch d_model"]:
        """Read the next batch of the stream onto the device."""
        x = next(self._stream, None)
        if x is None or len(x) != self._batch_tokens:
            rule = f"the stream promised {self.n_steps} batches of {self._batch_tokens} tokens"
            raise CycleFailed("dataset_exhausted", f"step {self.step} has no whole batch: {rule}")
        return x.to(self._device)

    def _first_batch(self) -> Float[Tensor, "batch d_model"]:
        if self.n_steps < 1:
            rule = "the training part must fill at least one batch"
            raise CycleFailed(
                "dataset_exhausted", f"n_steps = {self.n_steps}: {rule}", param="training.batch_tokens"
            )
        self._stream.seek(0)
        first_batch = next(self._stream)
        self._stream.seek(0)
        return first_batch

    def _require_finite(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            if tensor is not None and not tensor.isfinite().all():
                raise CycleFailed(
                    "non_finite",
                    f"step {self.step}: {name} is not finite; a lower learning rate may help",
                    step=self.step,
                    tensor=name,
                )

"""How much memory does one cycle take at most, phase by phase? Counted from what the trainer keeps at once.

Every term is a tensor that the method's modules hold at that point; only what a process holds before its
first tensor, and what the C library loses between small ones, are measured. `make bench ROWS=memory` sets the
whole beside the peak of real cycles.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dmsae.config import CycleConfig
from dmsae.service.known_models import ModelFacts
from dmsae.service.model_families import LayerSizes
from dmsae.sources import BuiltinText

FLOAT32 = 4
GIB = 1 << 30
PROCESS_BYTES = 560 << 20
"""A trainer with torch (CPU), transformers, numba and a tokenizer that has read its text, before any weight;
measured on x86-64 Linux."""
COMPILED_BYTES = 95 << 20
"""What compiling the fast step's loops leaves; measured likewise."""
CUDA_PROCESS_BYTES = 3 * GIB
"""The same on the host with CUDA's libraries. Not measured."""
CUDA_CONTEXT_BYTES = GIB // 2
"""What a CUDA context and its libraries take on the device. Not measured."""
ALLOCATOR_LOSS = 0.18
"""Share of many pieces of a few MiB that the C library loses between them on a CPU; 2% to 35% measured."""
ALLOCATOR_HOLDS = 0.75
"""Share of such pieces that it holds on to once they are freed; 50% to 100% measured."""
LARGEST_HELD = 32 << 20
"""Larger pieces are given back at once (glibc's largest M_MMAP_THRESHOLD)."""
DEAD_SHARE = 0.3
"""Share of the latents that count as dead at the worst moment: about 0.28 measured in short cycles."""
MAX_WINDOW_BYTES = GIB
"""`MAX_RESIDENT_BYTES` of the trainer: windows beyond it are read from the cache, or harvested, again."""
SCALE_TOKENS = 100_000
"""Training tokens that the trainer reads at least, to take the scale (METHOD 3)."""
READ_MARGIN = 1 / 8
"""How much more text than it needs the trainer reads, for tokens whose norm will drop them."""
UPPER_POSITIONS = 1024
"""Positions of one pass through the upper layers."""
FOUND_BYTES = 20
"""What the fast step writes down for a value that it found: its token, its latent and itself."""
DEAD_TOGETHER = 1 << 22
"""Pre-activations of dead latents that the fast step looks at together."""
ESTIMATES_TOGETHER = 1 << 21
"""Estimates that it holds at once."""
SNIPPET_BYTES = 80 << 20
"""`BLOCK_BYTES` of the trainer's snippets, and the positions, records and parts of a vocabulary beside it."""
BUILTIN_TOKENS = 115_000
"""Of the built-in text, in tokens of SmolLM2."""
TOPK_PAIR_BYTES = 16
"""What torch's `topk` on a CPU writes down for every element that it looks at: a value and a 64-bit place."""


class Need(NamedTuple):
    """Bytes that a phase holds at once."""

    device: float
    """Where model and SAE compute."""
    host: float
    """Where harvested activations lie."""


@dataclass(frozen=True)
class Peak:
    """The most that a cycle holds, in bytes; on a CPU device and host are one."""

    device: int
    host: int | None
    """None on a CPU: it is in `device`."""
    phase: str
    """The phase that needs most."""


def peak_memory(config: CycleConfig, facts: ModelFacts) -> Peak | None:
    """Give the peak of the costliest cycle; None where the model's sizes are not known."""
    if None in (facts.d_model, facts.n_layers, facts.n_vocab, facts.n_parameters) or facts.layer is None:
        return None
    sizes = _Sizes(config, facts, facts.layer)
    phases = {
        "loading": sizes.loading(),
        "harvesting": sizes.harvesting(),
        "training": sizes.training(),
        "attributing": sizes.attributing(),
        "evaluating": sizes.evaluating(),
    }
    if sizes.is_fast:
        for phase in ("training", "attributing", "evaluating"):
            phases[phase] = Need(phases[phase].device + COMPILED_BYTES, phases[phase].host)
    if config.device == "cpu":
        phase = max(phases, key=lambda name: sum(phases[name]))
        return Peak(round(PROCESS_BYTES + sum(phases[phase])), None, phase)
    phase = max(phases, key=lambda name: phases[name].device)
    host = max(need.host for need in phases.values())
    return Peak(round(CUDA_CONTEXT_BYTES + phases[phase].device), round(CUDA_PROCESS_BYTES + host), phase)


class _Sizes:
    """The tensors of a cycle, in bytes."""

    def __init__(self, config: CycleConfig, facts: ModelFacts, layer: LayerSizes) -> None:
        self._config, self._layer = config, layer
        self._d_model, self._n_vocab = facts.d_model or 0, facts.n_vocab or 0
        self._n_parameters = facts.n_parameters or 0
        self._n_upper = (facts.n_layers or 0) - config.activations.layer - 1
        self._model_dtype = 2 if config.activations.model_dtype == "bfloat16" else 4
        self._stored_dtype = facts.stored_bytes or self._model_dtype
        self._is_eager = layer.is_capped or config.activations.attention == "eager"
        self._is_cpu = config.device == "cpu"
        self.is_fast = self._is_cpu and config.has_fast_step
        self._n_prefixes = len(config.sae.block_widths) + 1

    def loading(self) -> Need:
        """Weights; where their type changes, or they go to a GPU, those of the files lie beside them."""
        is_copied = self._stored_dtype != self._model_dtype or not self._is_cpu
        return Need(self._model(), self._n_parameters * self._stored_dtype if is_copied else 0)

    def harvesting(self) -> Need:
        """The lower layers on one batch beside the last one; or its rows, picked; or a window, joined."""
        columns = self._config.data.context_length
        batch = self._config.activations.model_batch_contexts * columns
        window = self._window()
        passing = batch * self._layer_pass(columns)
        if not self._is_cpu:
            return Need(self._model() + passing, self._kept() + max(3 * batch * self._row(), window))
        most = max(passing + batch * self._row(), 3 * batch * self._row(), min(window, self._windows()))
        return Need(self._model() + most, self._kept())

    def training(self) -> Need:
        """Weights, gradients and Adam's moments, and what a step or the threshold's search holds besides."""
        step = self._fast_step() if self.is_fast else self._plain_step()
        return Need(
            self._model() + 4 * self._sae() + max(step, self._threshold_search()) + self._held_harvest(),
            self._kept(),
        )

    def _plain_step(self) -> float:
        """Give what the plain step holds of one batch.

        Widest on a CPU is `topk` over the whole of it: the pre-activations, a pair for each and two masks; on
        a GPU the latent activations with the dead latents' copies, forward or backward.
        """
        batch_tokens, n_latents = self._config.training.batch_tokens, self._config.sae.n_latents
        selecting = FLOAT32 + TOPK_PAIR_BYTES + 2 if self._is_cpu else 0
        dead = 5 * FLOAT32 + 1
        return batch_tokens * (max(selecting, dead) * n_latents + (2 * self._n_prefixes + 4) * self._row())

    def _fast_step(self) -> float:
        """Give what the fast step holds of one batch.

        The encoder in int8, every prefix's residuals, and the dead latents' part: copies of their weights and
        their gradients, and of those that a token uses what they are, twice.
        """
        batch_tokens = self._config.training.batch_tokens
        used = batch_tokens * self._d_model / 2 * 2 * FOUND_BYTES
        dead = 2 * DEAD_SHARE * self._sae() + used + 3 * FLOAT32 * DEAD_TOGETHER
        return self._fast_buffers() + (self._n_prefixes + 4) * batch_tokens * self._row() + dead

    def _fast_buffers(self) -> float:
        """Give what the fast step holds from batch to batch: the encoder in int8, and some estimates."""
        return self._config.sae.n_latents * self._d_model + FLOAT32 * ESTIMATES_TOGETHER

    def _threshold_search(self) -> float:
        """Give what finding the inference threshold holds: a copy of the SAE, a batch, and what may pass.

        Of what may pass twice as much is kept, joined and then partitioned, on the host. The dense product's
        first batch is compared and, its half that is positive, copied and partitioned; the fast step finds
        but twice its budget, keeps what it holds from batch to batch, and has given back its gradients.
        """
        training, k = self._config.training, self._config.sae.k
        n_acts = training.batch_tokens * self._config.sae.n_latents
        n_tokens = min(training.n_tokens or training.threshold_tokens, training.threshold_tokens)
        passing = 3 * FLOAT32 * 2 * k * n_tokens
        if self.is_fast:
            return passing + self._fast_buffers() + 4 * k * training.batch_tokens * FOUND_BYTES
        return self._sae() + n_acts * (FLOAT32 + 1) + max(passing, n_acts * FLOAT32)

    def attributing(self) -> Need:
        """What the upper layers keep for the way back, and three times the logits."""
        n_tokens = self._config.attribution.n_tokens
        pieces, scores = self._graph()
        lost = ALLOCATOR_LOSS * pieces * self._is_cpu
        most = self._measuring(n_tokens) + pieces + scores + lost + 3 * self._logits(n_tokens)
        return Need(most, self._kept())

    def evaluating(self) -> Need:
        """Log-probabilities without and with the SAE, and two copies in between; or snippets."""
        n_tokens = self._config.evaluation.n_tokens
        passing = self._positions(n_tokens) * self._layer_pass(self._config.data.context_length)
        held = max(ALLOCATOR_HOLDS * self._graph()[0] * self._is_cpu, self._held_harvest())
        looking = max(passing + 4 * self._logits(n_tokens), SNIPPET_BYTES)
        return Need(self._measuring(n_tokens) + held + looking, self._kept())

    def _model(self) -> float:
        return self._n_parameters * self._model_dtype

    def _sae(self) -> float:
        n_latents = self._config.sae.n_latents
        return FLOAT32 * (2 * n_latents * self._d_model + 2 * n_latents + self._d_model)

    def _row(self) -> int:
        """Give the bytes of one activation vector."""
        return FLOAT32 * self._d_model

    def _rounded_row(self) -> int:
        """Give the bytes of one that is rounded for training: float16, a power of two, and its norm."""
        return 2 * self._d_model + 1 + FLOAT32

    def _window(self) -> int:
        """Give the bytes of one training window, padding left in."""
        columns = self._config.data.context_length
        return self._config.activations.shuffle_window_contexts * columns * self._rounded_row()

    def _positions(self, n_tokens: int) -> int:
        """Give the positions of one pass through the upper layers: whole contexts, of one batch."""
        columns = self._config.data.context_length
        n_rows = min(max(1, UPPER_POSITIONS // columns), self._config.activations.model_batch_contexts)
        return min(n_rows, -(-n_tokens // columns) + 1) * columns

    def _logits(self, n_tokens: int) -> float:
        """Give one float32 copy of the logits of a pass."""
        return self._positions(n_tokens) * self._n_vocab * FLOAT32

    def _measuring(self, n_tokens: int) -> float:
        """Give what attribution and evaluation share: model, SAE, and the SAE's view of one pass.

        A cap on the final logits keeps two more copies of them, in the model's type.
        """
        capped = 2 * self._n_vocab * self._model_dtype * self._layer.is_capped_at_end
        acts = 2.25 * self._config.sae.n_latents * FLOAT32
        return self._model() + self._sae() + self._positions(n_tokens) * (acts + capped)

    def _kept(self) -> float:
        """Give what stays from the harvest to the end: windows, and the batches of the two other parts."""
        n_measured = self._config.attribution.n_tokens + self._config.evaluation.n_tokens
        return self._windows() + n_measured * self._row()

    def _windows(self) -> float:
        """Give the bytes of the training windows in memory: what one epoch reads, with its margin."""
        training, text = self._config.training, self._config.data.text
        n_available: float = MAX_WINDOW_BYTES
        if isinstance(text, BuiltinText):
            n_available = BUILTIN_TOKENS * self._config.data.split[0]
        n_read = n_available
        if training.n_tokens is not None:
            n_read = max(training.n_tokens / training.epochs, SCALE_TOKENS) * (1 + READ_MARGIN)
        n_bytes = min(n_read, n_available) * self._rounded_row()
        # the one in use and the one that is made ready come on top of the bound
        return min(n_bytes, MAX_WINDOW_BYTES + 2 * self._window())

    def _held_harvest(self) -> float:
        """Give what the C library holds on to of a harvest: a window's rows and a pass through one layer."""
        columns = self._config.data.context_length
        batch = self._config.activations.model_batch_contexts * columns
        window = self._window()
        pieces = {
            batch * self._row(): min(window, self._windows()),
            batch * self._layer.d_mlp * self._model_dtype: batch * self._layer_pass(columns),
        }
        freed = sum(total for size, total in pieces.items() if size < LARGEST_HELD)
        return ALLOCATOR_HOLDS * freed * self._is_cpu

    def _layer_pass(self, columns: int) -> float:
        """Give what one layer holds at once for a position, when nothing is kept for the way back."""
        layer, size = self._layer, self._model_dtype
        is_cast = size != FLOAT32
        scores = size + FLOAT32 * (2 if is_cast else 1) + size * layer.is_capped
        attention = 4 * layer.d_attention * size + layer.n_heads * columns * scores * self._is_eager
        mlp = (3 if layer.family.is_gated else 4) * layer.d_mlp * size
        return max(attention, mlp) + 3 * self._d_model * FLOAT32

    def _graph(self) -> tuple[float, float]:
        """Give what autograd keeps of one pass: vectors of each position, and eager attention's scores.

        The weights are frozen, so no matrix's input is kept. Counted in transformers 5.24 with
        `saved_tensors_hooks`, for each family in both types.
        """
        layer, size, columns = self._layer, self._model_dtype, self._config.data.context_length
        if layer.family.is_gated:
            heads = 3 * layer.d_attention if self._is_eager else 2 * (layer.d_attention + layer.d_key_value)
            vectors = layer.family.n_norms * self._d_model * FLOAT32 + (3 * layer.d_mlp + heads) * size
        elif layer.family.has_positions:
            vectors = ((5 if self._is_eager else 6) * layer.d_attention + 4 * layer.d_mlp) * size
        else:
            vectors = ((4 if self._is_eager else 7) * layer.d_attention + layer.d_mlp) * size
        scores = FLOAT32 + size * (size != FLOAT32) + size * layer.is_capped
        passed = self._positions(self._config.attribution.n_tokens) * self._n_upper
        return passed * vectors, passed * layer.n_heads * columns * scores * self._is_eager

"""What a Matryoshka SAE is: its parameters, its start around a core, encoding and decoding.

What training keeps active is left to `sparsity.py`, the form on disk to `formats.py`. Everything here is at
normalised scale: vectors of the residual stream are x_n = x / rms.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.config import SaeConfig
from dmsae.errors import CycleFailed

_Whole = TypeVar("_Whole", bound="Core | MatryoshkaSae")

UNIT_NORM_TOLERANCE = 1e-6
"""Encoder vectors this close to unit norm stay as they are, so that `core_norm: unit` changes them once."""


@dataclass(frozen=True)
class CoreLatent:
    """Who one latent of a core is, and how often it has been selected in unbroken cycles."""

    latent_id: str
    """`<job>.<cycle>.<sae_index>` of where it first entered a core."""
    origin_job_id: str
    origin_cycle: int
    origin_index: int
    """Its row in the SAE of its origin cycle."""
    times_selected: int


@dataclass(frozen=True)
class Provenance:
    """What a core's activations were: a core is refused where any of these differs (METHOD 3)."""

    model_revision: str
    hook: str
    dtype: str
    special_ids: tuple[int, ...]
    """Token ids that are never trained on."""
    split: tuple[float, ...]
    """Shares of the documents for training, attribution, evaluation."""
    split_salt: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Core:
    """The latents that a cycle passes on, at normalised scale, with the scale itself and their identities.

    Shapes: float32. `rms` and `median_norm` are norms of raw activations.
    """

    W_enc: Float[Tensor, "d_model n_core"]
    W_dec: Float[Tensor, "n_core d_model"]
    b_enc: Float[Tensor, " n_core"]
    threshold: Float[Tensor, " n_core"]
    b_dec: Float[Tensor, " d_model"]
    rms: float
    median_norm: float
    provenance: Provenance
    latents: list[CoreLatent]

    @property
    def n_core(self) -> int:
        """Number of latents of the core."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device) -> Self:
        """Give this core with its tensors on `device`."""
        return _to(self, device)

    def only(self, rows: list[int]) -> Self:
        """Give a core of some of its latents, in this order."""
        return replace(
            self,
            W_enc=self.W_enc[:, rows],
            W_dec=self.W_dec[rows],
            b_enc=self.b_enc[rows],
            threshold=self.threshold[rows],
            latents=[self.latents[row] for row in rows] if self.latents else [],
        )

    def require_provenance(self, provenance: Provenance) -> None:
        """Refuse activations that differ from those that this core was found on.

        Raises: CycleFailed(core_mismatch) naming the first field that differs.
        """
        for field in fields(Provenance):
            own, given = getattr(self.provenance, field.name), getattr(provenance, field.name)
            if own != given:
                rule = f"the core was found with {own!r}; run it with the same {field.name}"
                raise CycleFailed(
                    "core_mismatch", f"{field.name} = {given!r}: {rule}", param=f"core.{field.name}"
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class MatryoshkaSae:
    """A trained Matryoshka SAE: a JumpReLU SAE of which every prefix reconstructs by itself.

    Shapes: float32, decoder rows of unit norm. `prefix_widths` are cumulative and end in n_latents; the first
    `n_core` latents are the core.
    """

    W_enc: Float[Tensor, "d_model n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " n_latents"]
    prefix_widths: list[int]
    n_core: int

    def to(self, device: torch.device) -> Self:
        """Give this SAE with its tensors on `device`."""
        return _to(self, device)

    def pre_acts(self, x: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens n_latents"]:
        """Give what the encoder makes of normalised activations, before any nonlinearity."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens n_latents"]:
        """Give the latent activations: what lies strictly above the inference threshold, else 0."""
        pre_acts = self.pre_acts(x)
        return torch.where(pre_acts > self.threshold, pre_acts, 0.0)

    def decode(
        self, latent_acts: Float[Tensor, "*tokens n_latents"], width: int | None = None
    ) -> Float[Tensor, "*tokens d_model"]:
        """Reconstruct from the first `width` latents (all, if not given)."""
        return self.b_dec + latent_acts[..., :width] @ self.W_dec[:width]

    def decode_prefixes(
        self, latent_acts: Float[Tensor, "*tokens n_latents"]
    ) -> list[Float[Tensor, "*tokens d_model"]]:
        """Reconstruct from every prefix, the narrowest first, at the price of one decode."""
        return decode_prefixes(latent_acts, self.W_dec, self.b_dec, prefix_widths=self.prefix_widths)


def decode_prefixes(
    latent_acts: Float[Tensor, "*tokens n_latents"],
    W_dec: Float[Tensor, "n_latents d_model"],
    b_dec: Float[Tensor, " d_model"],
    *,
    prefix_widths: list[int],
) -> list[Float[Tensor, "*tokens d_model"]]:
    """Reconstruct from every prefix; each adds its own block of latents to the one before.

    Source: Matryoshka SAEs, arXiv 2503.17547.
    """
    block_sizes = [wide - narrow for narrow, wide in pairwise([0, *prefix_widths])]
    x_hat, x_hats = b_dec, []
    # split, not slices: its backward joins the blocks once instead of padding each to full width
    for acts, rows in zip(
        torch.split(latent_acts, block_sizes, dim=-1), torch.split(W_dec, block_sizes), strict=True
    ):
        x_hat = x_hat + acts @ rows
        x_hats.append(x_hat)
    return x_hats


def normalise_rows_(rows: Float[Tensor, "n_rows d_model"]) -> Float[Tensor, "n_rows d_model"]:
    """Divide each row by its Euclidean norm.

    Mutates: `rows`, which is also returned.
    """
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))


def geometric_median(
    points: Float[Tensor, "n_points d_model"], *, tolerance: float = 1e-7, max_iterations: int = 1000
) -> Float[Tensor, " d_model"]:
    """Find the point with the least mean distance to all `points`, in float64.

    Stops once a step is shorter than `tolerance` times the mean distance, or after `max_iterations`.

    Source: Weiszfeld's algorithm, from the mean; distances are kept off zero, as at a data point.
    """
    points64 = points.double()
    median = points64.mean(dim=0)
    for _ in range(max_iterations):
        distances = (points64 - median).norm(dim=1)
        scale = distances.mean()
        if scale == 0:
            break
        weights = 1 / distances.clamp_min(1e-12 * scale.item())
        moved = (weights @ points64) / weights.sum()
        step = (moved - median).norm()
        median = moved
        if step <= tolerance * scale:
            break
    return median.to(points.dtype)


def init_sae(
    config: SaeConfig,
    d_model: int,
    *,
    core: Core | None,
    first_batch: Float[Tensor, "batch d_model"],
    generator: torch.Generator,
) -> MatryoshkaSae:
    """Make the SAE that a cycle starts from, around `core` or from nothing (METHOD 1, 2).

    Core latents come first. Their encoder vectors are copied bit for bit (or brought to unit norm), their
    decoder rows reinitialised. Others: random decoder rows, the encoder their transpose. b_enc = 0,
    threshold = 0, b_dec is the geometric median of the first batch. Draws from `generator` only.

    Raises: CycleFailed where the core does not fit: core_empty, core_too_large, core_mismatch.
    """
    n_core = core.n_core if core is not None else 0
    if core is not None:
        require_fit(core, config, d_model=d_model)
    W_dec = _random_unit_rows(config.n_latents - n_core, d_model, generator=generator)
    W_enc = W_dec.T
    if core is not None:
        core_W_enc = core.W_enc if config.core_norm == "keep" else _unit_columns(core.W_enc)
        if config.core_decoder == "transpose":
            core_W_dec = normalise_rows_(core.W_enc.T.clone())
        else:
            core_W_dec = _random_unit_rows(n_core, d_model, generator=generator)
        W_enc = torch.cat([core_W_enc, W_enc], dim=1)
        W_dec = torch.cat([core_W_dec, W_dec])
    return MatryoshkaSae(
        W_enc=W_enc.clone(memory_format=torch.contiguous_format),
        b_enc=torch.zeros(config.n_latents),
        W_dec=W_dec,
        b_dec=geometric_median(first_batch),
        threshold=torch.zeros(config.n_latents),
        prefix_widths=config.prefix_widths(n_core),
        n_core=n_core,
    )


def _random_unit_rows(
    n_rows: int, d_model: int, *, generator: torch.Generator
) -> Float[Tensor, "n_rows d_model"]:
    rows = torch.randn(n_rows, d_model, generator=generator)
    return normalise_rows_(rows)


def _unit_columns(W_enc: Float[Tensor, "d_model n_core"]) -> Float[Tensor, "d_model n_core"]:
    norms = W_enc.norm(dim=0)
    return W_enc / torch.where((norms - 1).abs() <= UNIT_NORM_TOLERANCE, 1.0, norms)


def require_fit(core: Core, config: SaeConfig, *, d_model: int) -> None:
    """Refuse a core around which no SAE of this shape can be built.

    Raises: CycleFailed with core_empty, core_too_large or core_mismatch.
    """
    if core.n_core == 0:
        raise CycleFailed("core_empty", "core = 0 latents: a core must hold at least one", param="core")
    if core.W_enc.shape[0] != d_model:
        rule = f"must equal the model's d_model = {d_model}"
        raise CycleFailed("core_mismatch", f"core.d_model = {core.W_enc.shape[0]}: {rule}", param="core")
    widest = config.block_widths[-1]
    if core.n_core + widest >= config.n_latents:
        rule = f"with the widest block ({widest}) must be below n_latents = {config.n_latents}"
        raise CycleFailed("core_too_large", f"core = {core.n_core} latents: {rule}", param="core")
    norms = core.W_enc.norm(dim=0)
    for core_index in (~(norms.isfinite() & (norms > 0))).nonzero().flatten().tolist():
        rule = "its encoder vector must be finite and not zero"
        raise CycleFailed(
            "core_mismatch", f"core_index = {core_index}: {rule}", param="core.W_enc", core_index=core_index
        )


def _to(whole: _Whole, device: torch.device) -> _Whole:
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(whole).items() if isinstance(value, Tensor)
    }
    return replace(whole, **tensors)

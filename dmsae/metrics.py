"""How good is the SAE on tokens never trained on?

Sums over all batches, divided once (METHOD 10); measuring changes nothing. Every loss is counted at the same
positions: those with a kept input token and a token after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dmsae.activations import ContextBatch
from dmsae.errors import CycleFailed
from dmsae.sae import Core, MatryoshkaSae
from dmsae.splicing import RunUpper, is_counted, kept, next_tokens, splice, split_rows

KL_POSITIONS = 256
"""Positions whose divergence is taken at once: bounds memory."""


class Drift(NamedTuple):
    """How far each latent has moved since the SAE that selected it, by its place in the core given."""

    decoder_cosine: list[float]
    firing_jaccard: list[float | None]
    """Tokens at which it fires in both SAEs over those where it does in either; null where it never does."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an SAE reconstructs, and what the language model makes of it.

    Lists have one entry per prefix, the narrowest first. Cross-entropies are means in nats. Explained
    variance is null where the activations do not vary, what stands on losses where none is counted.
    """

    n_tokens: int
    """Kept tokens."""
    n_losses: int
    """Next-token losses that were counted."""
    prefix_widths: list[int]
    l0_core: float
    l0_non_core: float
    l0_se: float | None
    """Standard error of the L0 over documents, whose tokens are not independent; null for a single one."""
    densities: Float64[Tensor, " n_latents"]
    """Share of the kept tokens at which each latent fires."""
    explained_variance: list[float | None]
    """1 - E||x - x_hat||^2 / E||x - E x||^2, pooled over tokens."""
    explained_variance_median: list[float | None]
    """Median over tokens of 1 - ||x - x_hat||^2 / ||x - E x||^2."""
    ce_clean: float | None
    ce: list[float | None]
    """With x replaced at kept positions."""
    kl: list[float | None]
    """KL(clean || with x replaced), nats."""
    ce_zero_all: float | None
    """With zeros at every position, as SAELens does it."""
    ce_zero_kept: float | None
    """With zeros at kept positions."""
    ce_mean: float | None
    """With the mean of the kept tokens at kept positions."""
    drift: Drift | None
    """Null where no core was given."""

    @property
    def ce_increase(self) -> list[float | None]:
        """By how many nats each prefix raises the cross-entropy."""
        return [None if ce is None or self.ce_clean is None else ce - self.ce_clean for ce in self.ce]

    @property
    def lr_saelens(self) -> list[float | None]:
        """Loss recovered against zeros at every position."""
        return [_recovered(ce, self.ce_clean, self.ce_zero_all) for ce in self.ce]

    @property
    def lr_kept(self) -> list[float | None]:
        """Loss recovered against zeros at the positions that the SAE replaces."""
        return [_recovered(ce, self.ce_clean, self.ce_zero_kept) for ce in self.ce]

    def to_metrics(self) -> dict[str, Any]:
        """Give this part of `metrics.json`; without a suffix, a figure is that of the widest prefix."""
        return {
            "n_tokens_evaluated": self.n_tokens,
            "n_losses_evaluated": self.n_losses,
            "prefix_widths": self.prefix_widths,
            "l0": self.l0_core + self.l0_non_core,
            "l0_core": self.l0_core,
            "l0_non_core": self.l0_non_core,
            "l0_se": self.l0_se,
            "dead_fraction": (self.densities == 0).double().mean().item(),
            "density_median": self.densities.median().item(),
            "explained_variance": self.explained_variance[-1],
            "explained_variance_per_prefix": self.explained_variance,
            "explained_variance_median_per_prefix": self.explained_variance_median,
            "ce_clean": self.ce_clean,
            "ce_zero_all": self.ce_zero_all,
            "ce_zero_kept": self.ce_zero_kept,
            "ce_mean": self.ce_mean,
            "ce_increase": self.ce_increase[-1],
            "ce_increase_per_prefix": self.ce_increase,
            "kl_per_prefix": self.kl,
            "lr_saelens": self.lr_saelens[-1],
            "lr_saelens_per_prefix": self.lr_saelens,
            "lr_kept": self.lr_kept[-1],
            "lr_kept_per_prefix": self.lr_kept,
        }


@torch.no_grad()
def evaluate(
    batches: Sequence[ContextBatch],
    run_upper: RunUpper,
    sae: MatryoshkaSae,
    *,
    rms: float,
    previous: Core | None,
) -> Evaluation:
    """Measure `sae` on all kept tokens of `batches`, which are read twice: their mean comes first.

    `previous` is the core that the SAE was built around, as it was in the SAE that selected it.

    Raises: CycleFailed(dataset_exhausted) where no token is kept, CycleFailed(non_finite).
    Source: METHOD 10. `lr_saelens` is SAELens' `ce_loss_score` with what is dropped here as `ignore_tokens`:
    zeros at all positions, losses where the input token is not ignored (evals.py of 6.54).
    """
    device = sae.W_dec.device
    mean = _mean(batches).to(device)
    reconstruction, losses = _Reconstruction(mean), _Losses(len(sae.prefix_widths))
    firings = _Firings(len(sae.threshold), sae.n_core)
    for batch in split_rows(batches):
        x = kept(batch, device)
        acts = sae.encode(x / rms)
        x_hats = [rms * x_hat for x_hat in sae.decode_prefixes(acts)]
        reconstruction.add(x, x_hats)
        documents = batch.document_index[batch.is_kept]
        firings.add(acts > 0, documents, None if previous is None else _fires(previous, x / rms))
        losses.add(batch, x_hats, mean, run_upper)
    return Evaluation(
        n_tokens=firings.n_tokens,
        n_losses=losses.n_losses,
        prefix_widths=sae.prefix_widths,
        l0_core=firings.l0(slice(None, sae.n_core)),
        l0_non_core=firings.l0(slice(sae.n_core, None)),
        l0_se=firings.l0_error(),
        densities=firings.counts.double() / firings.n_tokens,
        explained_variance=reconstruction.pooled(),
        explained_variance_median=reconstruction.median(),
        ce_clean=losses.mean("clean"),
        ce=[losses.mean(f"prefix {g}") for g in range(len(sae.prefix_widths))],
        kl=[losses.mean(f"kl {g}") for g in range(len(sae.prefix_widths))],
        ce_zero_all=losses.mean("zero all"),
        ce_zero_kept=losses.mean("zero kept"),
        ce_mean=losses.mean("mean"),
        drift=None if previous is None else Drift(_decoder_cosine(previous, sae), firings.jaccard()),
    )


class _Reconstruction:
    """Squared errors of each prefix at each token."""

    def __init__(self, mean: Float[Tensor, " d_model"]) -> None:
        self._mean = mean
        self._errors: list[Float64[Tensor, "n_prefixes n_tokens"]] = []
        self._spreads: list[Float64[Tensor, " n_tokens"]] = []

    def add(self, x: Float[Tensor, "n_kept d_model"], x_hats: list[Float[Tensor, "n_kept d_model"]]) -> None:
        errors = torch.stack([(x - x_hat).double().square().sum(dim=1) for x_hat in x_hats])
        self._errors.append(errors.cpu())
        self._spreads.append((x - self._mean).double().square().sum(dim=1).cpu())

    def pooled(self) -> list[float | None]:
        spread = torch.cat(self._spreads).sum().item()
        errors = torch.cat(self._errors, dim=1).sum(dim=1).tolist()
        return [1 - error / spread if spread > 0 else None for error in errors]

    def median(self) -> list[float | None]:
        spreads = torch.cat(self._spreads)
        if not (spreads > 0).any():
            return [None for _ in self._errors[0]]
        errors = torch.cat(self._errors, dim=1)[:, spreads > 0]
        return (1 - errors / spreads[spreads > 0]).quantile(0.5, dim=1).tolist()


class _Firings:
    """How often each latent fires, and those of the core with their former selves."""

    def __init__(self, n_latents: int, n_core: int) -> None:
        self.n_tokens = 0
        self.counts: Int[Tensor, " n_latents"] = torch.zeros(n_latents, dtype=torch.int64)
        self._of_token: list[tuple[Tensor, Tensor]] = []
        self._n_core = n_core
        self._both: Int[Tensor, " n_core"] = torch.zeros(n_core, dtype=torch.int64)
        self._either: Int[Tensor, " n_core"] = torch.zeros(n_core, dtype=torch.int64)

    def add(
        self,
        fires: Bool[Tensor, "n_kept n_latents"],
        documents: Int[Tensor, " n_kept"],
        fired_before: Bool[Tensor, "n_kept n_core"] | None,
    ) -> None:
        self.n_tokens += len(fires)
        self._of_token.append((documents.cpu(), fires.sum(dim=1).cpu()))
        self.counts += fires.sum(dim=0).cpu()
        if fired_before is not None:
            self._both += (fires[:, : self._n_core] & fired_before).sum(dim=0).cpu()
            self._either += (fires[:, : self._n_core] | fired_before).sum(dim=0).cpu()

    def l0(self, latents: slice) -> float:
        return self.counts[latents].sum().item() / self.n_tokens

    def l0_error(self) -> float | None:
        """Give the standard error of the L0, documents as clusters.

        Source: the linearised ratio estimator of clusters (Cochran, Sampling Techniques, 3rd ed., 9A).
        """
        documents, n_active = (torch.cat(each) for each in zip(*self._of_token, strict=True))
        names, place = torch.unique(documents, return_inverse=True)
        if len(names) < 2:
            return None
        strayed = n_active.double() - n_active.double().mean()
        sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, place, strayed)
        n = len(names)
        return (sums.square().sum() * n / (n - 1)).sqrt().item() / self.n_tokens

    def jaccard(self) -> list[float | None]:
        pairs = zip(self._both.tolist(), self._either.tolist(), strict=True)
        return [both / either if either else None for both, either in pairs]


class _Losses:
    """Sums of cross-entropy and divergence, by what stands in the place of the activations."""

    def __init__(self, n_prefixes: int) -> None:
        self.n_losses = 0
        names = ["clean", "zero all", "zero kept", "mean"]
        names += [f"{kind} {g}" for kind in ("prefix", "kl") for g in range(n_prefixes)]
        self._sums = dict.fromkeys(names, 0.0)

    def add(
        self,
        batch: ContextBatch,
        x_hats: list[Float[Tensor, "n_kept d_model"]],
        mean: Float[Tensor, " d_model"],
        run_upper: RunUpper,
    ) -> None:
        """Run the upper layers once for the clean activations, each prefix and each ablation."""
        counted = is_counted(batch)
        targets = next_tokens(batch, counted)
        if len(targets) == 0:
            return
        self.n_losses += len(targets)

        def log_probs(activations: Float[Tensor, "n t d_model"]) -> Float[Tensor, "n_counted vocab"]:
            return run_upper(batch, activations)[counted].log_softmax(dim=-1)

        clean = log_probs(batch.activations)
        self._add_ce("clean", clean, targets)
        for g, x_hat in enumerate(x_hats):
            spliced = log_probs(splice(batch, x_hat))
            self._add_ce(f"prefix {g}", spliced, targets)
            self._sums[f"kl {g}"] += _divergence(clean, spliced)
        zero = torch.zeros_like(mean)
        self._add_ce("zero all", log_probs(torch.zeros_like(batch.activations)), targets)
        self._add_ce("zero kept", log_probs(splice(batch, zero)), targets)
        self._add_ce("mean", log_probs(splice(batch, mean)), targets)

    def mean(self, name: str) -> float | None:
        """Divide a sum by the number of losses.

        Raises: CycleFailed(non_finite).
        """
        if self.n_losses == 0:
            return None
        value = self._sums[name] / self.n_losses
        if not math.isfinite(value):
            raise CycleFailed(
                "non_finite",
                f"The loss ({name}) is {value} on the evaluation part: training diverged; "
                "try a lower training.lr.",
                param="training.lr",
            )
        return value

    def _add_ce(
        self, name: str, log_probs: Float[Tensor, "n_counted vocab"], targets: Int[Tensor, " n_counted"]
    ) -> None:
        chosen = log_probs.gather(1, targets[:, None].to(log_probs.device))
        self._sums[name] -= chosen.double().sum().item()


def _mean(batches: Sequence[ContextBatch]) -> Float[Tensor, " d_model"]:
    """Give the mean kept activation, summed in float64."""
    n_tokens = sum(int(batch.is_kept.sum()) for batch in batches)
    if n_tokens == 0:
        raise CycleFailed(
            "dataset_exhausted",
            "The evaluation part holds no token that is kept: give more text or a larger share of it.",
            param="data.split",
        )
    sums = torch.stack([batch.activations[batch.is_kept].double().sum(dim=0) for batch in batches])
    return (sums.sum(dim=0) / n_tokens).float()


def _fires(core: Core, x: Float[Tensor, "n_kept d_model"]) -> Bool[Tensor, "n_kept n_core"]:
    """Mark where the latents of a core fire in the SAE that selected them."""
    W_enc, b_enc, b_dec, threshold = (
        tensor.to(x.device) for tensor in (core.W_enc, core.b_enc, core.b_dec, core.threshold)
    )
    return (x - b_dec) @ W_enc + b_enc > threshold


def _decoder_cosine(core: Core, sae: MatryoshkaSae) -> list[float]:
    cosines: list[float] = cosine_similarity(
        core.W_dec, sae.W_dec[: core.n_core].to(core.W_dec.device), dim=1
    ).tolist()
    return cosines


def _divergence(p: Float[Tensor, "n_counted vocab"], q: Float[Tensor, "n_counted vocab"]) -> float:
    """Sum KL(p || q) over positions, both given as log-probabilities."""
    pairs = zip(torch.split(p, KL_POSITIONS), torch.split(q, KL_POSITIONS), strict=True)
    return sum((clean.exp() * (clean - spliced)).sum(dim=1).double().sum().item() for clean, spliced in pairs)


def _recovered(ce: float | None, clean: float | None, ablated: float | None) -> float | None:
    if ce is None or clean is None or ablated is None or ablated == clean:
        return None
    return (ablated - ce) / (ablated - clean)

"""How much does each latent matter to the next-token loss?

Reads the attribution part once, with the most nested reconstruction in the place of the kept activations, and
attributes the loss to each of its latents (the candidates). How attributions become scores is left to
`scoring.py`, which candidates form the core to `selection.py`, how true a score is to `ablation.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dmsae.activations import ContextBatch
from dmsae.config import AttributionConfig
from dmsae.errors import CycleFailed
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES, Firings, Scores, firing_densities, score, score_errors
from dmsae.splicing import RunUpper, is_counted, kept, row_losses, splice, split_rows, take_kept


@dataclass(frozen=True)
class Replacement:
    """What stands in the place of a kept activation: the most nested reconstruction of an SAE (METHOD 8)."""

    sae: MatryoshkaSae
    rms: float
    error_term: Literal["none", "add"] = "none"
    """`add` keeps x - x_hat_1 beside it: the value is x, but it moves with x_hat_1 alone."""

    @property
    def n_candidates(self) -> int:
        """Latents of the most nested reconstruction."""
        return self.sae.prefix_widths[0]

    def encode(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n n_candidates"]:
        """Give the candidates' activations, at normalised scale, of raw activations."""
        return self.sae.encode(x / self.rms)[:, : self.n_candidates]

    def decode(self, acts: Float[Tensor, "n n_candidates"]) -> Float[Tensor, "n d_model"]:
        """Give x_hat_1, raw."""
        return self.rms * self.sae.decode(acts, self.n_candidates)

    def of(
        self, x: Float[Tensor, "n d_model"], x_hat: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """Give what stands in the place of `x`, differentiable in its reconstruction alone; raw units."""
        return x_hat + (x - x_hat).detach() if self.error_term == "add" else x_hat


class Attribution(NamedTuple):
    """Four scores of every candidate, and how sure they are."""

    n_tokens: int
    """Kept tokens; every score is a figure per kept token."""
    n_documents: int
    n_losses: int
    """Next-token losses that were counted."""
    loss: float | None
    """Their mean with the most nested reconstruction in place, in nats; null if none was counted."""
    densities: Float64[Tensor, " n_candidates"]
    """Share of the kept tokens at which a candidate fires."""
    scores: Scores
    """By name: absolute, signed and quantile in nats a token, energy at normalised scale."""
    standard_errors: Scores
    """Over documents; NaN where there is one only. That of `signed` is of the mean before it is cut at 0."""
    half_scores: tuple[Scores, Scores]
    """The scores on two halves of the documents: every other one, by ascending document index."""

    def to_tensors(self) -> dict[str, Float64[Tensor, " n_candidates"]]:
        """Give all figures per candidate under flat names, for `scores.safetensors`."""
        tensors = {"density": self.densities}
        for name in SCORES:
            tensors[f"score_{name}"] = self.scores[name]
            tensors[f"score_se_{name}"] = self.standard_errors[name]
            for half, scores in enumerate(self.half_scores):
                tensors[f"score_half{half}_{name}"] = scores[name]
        return tensors


class _Reading(NamedTuple):
    firings: Firings
    loss: float
    n_losses: int


def attribute(
    batches: Iterable[ContextBatch],
    run_upper: RunUpper,
    sae: MatryoshkaSae,
    *,
    rms: float,
    config: AttributionConfig,
) -> Attribution:
    """Score every latent of the most nested reconstruction on the first `config.n_tokens` kept tokens.

    x is replaced at kept positions by x_hat_1; with G = dL/dx_hat in raw units and L the summed cross-entropy
    in nats, A_ti = rms * a_ti * <W_dec[i], G_t>. One backward pass to d_model gives all. Sums are float64.

    Raises: CycleFailed(dataset_exhausted) where no token is kept.
    Source: METHOD 8. Our choice: the replacement has no error term unless `error_term` is `add`.
    """
    replacement = Replacement(sae, rms, config.error_term)
    n_candidates = replacement.n_candidates
    readings = [
        _read(batch, run_upper, replacement) for batch in split_rows(take_kept(batches, config.n_tokens))
    ]
    firings = _join([reading.firings for reading in readings])
    n_losses = sum(reading.n_losses for reading in readings)
    documents = torch.unique(firings.documents)
    scores = score(firings, n_candidates, quantile=config.quantile)
    first, second = (
        score(firings.of_documents(documents[half::2]), n_candidates, quantile=config.quantile)
        for half in (0, 1)
    )
    return Attribution(
        n_tokens=firings.n_tokens,
        n_documents=len(documents),
        n_losses=n_losses,
        loss=sum(reading.loss for reading in readings) / n_losses if n_losses else None,
        densities=firing_densities(firings, n_candidates),
        scores=scores,
        standard_errors=score_errors(firings, scores, quantile=config.quantile),
        half_scores=(first, second),
    )


def _read(batch: ContextBatch, run_upper: RunUpper, replacement: Replacement) -> _Reading:
    """Attribute the summed loss of one batch to each firing of a candidate."""
    W_dec, counted = replacement.sae.W_dec[: replacement.n_candidates], is_counted(batch)
    with torch.no_grad():
        x = kept(batch, W_dec.device)
        acts = replacement.encode(x)
        x_hat = replacement.decode(acts)
    with torch.enable_grad():
        x_hat.requires_grad_()
        logits = run_upper(batch, splice(batch, replacement.of(x, x_hat)))
        loss = row_losses(logits, batch, counted).sum()
        (gradient,) = torch.autograd.grad(loss, x_hat)
    attributions = replacement.rms * acts * (gradient @ W_dec.T)
    return _Reading(_firings(batch, acts.cpu(), attributions.cpu()), loss.item(), int(counted.sum()))


def _firings(
    batch: ContextBatch,
    acts: Float[Tensor, "n_kept n_candidates"],
    attributions: Float[Tensor, "n_kept n_candidates"],
) -> Firings:
    documents = batch.document_index[batch.is_kept]
    token, candidate = (acts > 0).nonzero(as_tuple=True)
    values = attributions[token, candidate], acts[token, candidate]
    return Firings(candidate, documents[token], *values, documents=documents)


def _join(pieces: list[Firings]) -> Firings:
    if sum(piece.n_tokens for piece in pieces) == 0:
        raise CycleFailed(
            "dataset_exhausted",
            "The attribution part holds no token that is kept: give more text or a larger share of it.",
            param="data.split",
        )
    return Firings(*(torch.cat(fields) for fields in zip(*pieces, strict=True)))

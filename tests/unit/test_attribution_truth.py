"""Scores equal brute force: autograd through a language model that really contains the SAE.

The SAE's first prefix stands in the model as a module behind a decoder layer; the model runs from token ids,
and each latent activation keeps its own gradient. Nothing here is shared with the code under test but the
weights. Scores are compared, never shares, which would hide a factor.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dmsae.activations import ContextBatch
from dmsae.attribution import attribute
from dmsae.config import AttributionConfig
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES
from tests.spliced import LAYER, CutModel, in_batches, random_sae, rms_of
from tests.tiny import tiny_llama

LENGTHS = [9, 12, 2, 7, 12, 5]
QUANTILE = 0.7
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Of each score, and of the largest one: about a thousand roundings (6e-8, 1e-16) of four layers' sums.

A wrong factor, position or token would show at any precision; that ten digits agree in float64 says that only
rounding differs in float32.
"""


class LayerWithSae(nn.Module):
    """A decoder layer, behind it the SAE's most nested reconstruction in the place of kept activations."""

    def __init__(
        self, layer: nn.Module, sae: MatryoshkaSae, *, is_kept: Tensor, rms: float, error_term: str
    ) -> None:
        super().__init__()
        self.layer, self.sae, self.is_kept = layer, sae, is_kept
        self.rms, self.error_term = rms, error_term
        self.latent_acts: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x, sae, width = self.layer(*args, **kwargs), self.sae, self.sae.prefix_widths[0]
        pre_acts = ((x / self.rms - sae.b_dec) @ sae.W_enc + sae.b_enc)[..., :width]
        acts = torch.where(pre_acts > sae.threshold[:width], pre_acts, 0.0).detach().requires_grad_()
        x_hat = self.rms * (acts @ sae.W_dec[:width] + sae.b_dec)
        if self.error_term == "add":
            x_hat = x_hat + (x - x_hat).detach()
        self.latent_acts = acts
        return torch.where(self.is_kept[..., None], x_hat, x)


class Truth(NamedTuple):
    """Of each kept token and candidate."""

    attributions: Tensor
    latent_acts: Tensor


def brute_force(batch: ContextBatch, sae: MatryoshkaSae, *, rms: float, error_term: str) -> Truth:
    """Run the model with the SAE inside from its token ids; read the gradient at each latent activation."""
    model = tiny_llama().to(sae.W_dec.dtype)
    layers: Any = model.model.layers
    inside = LayerWithSae(layers[LAYER], sae, is_kept=batch.is_kept, rms=rms, error_term=error_term)
    layers[LAYER] = inside
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    loss = torch.zeros((), dtype=logits.dtype)
    for row in range(len(logits)):
        for t in range(logits.shape[1] - 1):
            if batch.is_kept[row, t] and batch.is_token[row, t + 1]:
                loss = loss + cross_entropy(logits[row, t], batch.input_ids[row, t + 1])
    loss.backward()
    acts = inside.latent_acts
    assert acts is not None
    assert acts.grad is not None
    return Truth((acts * acts.grad).detach()[batch.is_kept], acts.detach()[batch.is_kept])


def expected_scores(truth: Truth) -> dict[str, Tensor]:
    """Work the four scores out of the dense table of all kept tokens, by other means than the code's."""
    size = truth.attributions.double().abs()
    return {
        "absolute": size.mean(dim=0),
        "signed": (-truth.attributions.double().mean(dim=0)).relu(),
        "quantile": torch.from_numpy(np.quantile(size.numpy(), QUANTILE, axis=0, method="inverted_cdf")),
        "energy": truth.latent_acts.double().square().mean(dim=0),
    }


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def sae(dtype: torch.dtype) -> MatryoshkaSae:
    sae = random_sae()
    return replace(sae, **{name: v.to(dtype) for name, v in vars(sae).items() if isinstance(v, Tensor)})


@pytest.fixture(scope="module")
def batch(dtype: torch.dtype) -> ContextBatch:
    return CutModel(dtype).contexts(LENGTHS)


@pytest.fixture(scope="module", params=["none", "add"])
def error_term(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def truth(batch: ContextBatch, sae: MatryoshkaSae, error_term: str) -> Truth:
    return brute_force(batch, sae, rms=rms_of(batch), error_term=error_term)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_equals_autograd_through_a_model_that_contains_the_sae(
    name, dtype, batch, sae, error_term, truth
):
    config = AttributionConfig(n_tokens=10_000, score=name, quantile=QUANTILE, error_term=error_term)
    found = attribute(in_batches(batch, 4), CutModel(dtype), sae, rms=rms_of(batch), config=config)
    expected = expected_scores(truth)[name]
    assert expected.count_nonzero() > 3
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        found.scores[name], expected, rtol=tolerance, atol=tolerance * expected.max().item()
    )
    torch.testing.assert_close(found.densities, (truth.latent_acts > 0).double().mean(dim=0))


def test_the_options_are_really_different_so_that_no_test_passes_for_another(batch, sae, truth, error_term):
    scores = expected_scores(truth)
    for one, other in [("absolute", "signed"), ("absolute", "quantile"), ("absolute", "energy")]:
        assert not torch.allclose(scores[one], scores[other], rtol=0.05)
    term = {"none": "add", "add": "none"}[error_term]
    others = expected_scores(brute_force(batch, sae, rms=rms_of(batch), error_term=term))
    for name in ("absolute", "signed", "quantile"):
        assert not torch.allclose(scores[name], others[name], rtol=0.05)
    torch.testing.assert_close(scores["energy"], others["energy"])

"""Claims about padding: the same tokens give the same, wherever it stands and whatever stands there."""

import math

import pytest
import torch

from dmsae.hooks import resolve_hook
from tests.hooked import LENGTH, each_family, each_hook, lower, make_input_ids, upper
from tests.tiny import FAMILIES, tiny_family_model, tiny_loaded


@pytest.fixture(scope="module")
def models():
    return {family: tiny_loaded(tiny_family_model(family)) for family in FAMILIES}


@pytest.fixture
def input_ids():
    return make_input_ids()


@each_family
@each_hook
@pytest.mark.parametrize(("n_left", "n_right"), [(6, 0), (0, 6), (3, 4)])
def test_padding_left_or_right_changes_nothing_at_tokens(models, family, hook, input_ids, n_left, n_right):
    loaded = models[family]
    point = resolve_hook(loaded, layer=2, hook=hook)
    plain = lower(loaded, point, input_ids)
    logits = upper(loaded, point, input_ids, plain)
    n_columns = n_left + LENGTH + n_right
    padded_ids, is_token = torch.full((3, n_columns), 7), torch.zeros(3, n_columns, dtype=torch.bool)
    padded_ids[:, n_left : n_left + LENGTH] = input_ids
    is_token[:, n_left : n_left + LENGTH] = True
    padded = lower(loaded, point, padded_ids, is_token)
    padded[~is_token] = math.nan
    padded_logits = upper(loaded, point, padded_ids, padded, is_token)
    found = padded[is_token].view_as(plain), padded_logits[is_token].view_as(logits)
    for one, other in zip(found, (plain, logits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@each_family
@each_hook
def test_a_context_alone_gives_what_it_gives_among_longer_ones(models, family, hook, input_ids):
    loaded, lengths = models[family], (3, LENGTH, 8)
    point = resolve_hook(loaded, layer=2, hook=hook)
    place = torch.arange(LENGTH)
    for is_token in (
        place < torch.tensor(lengths)[:, None],
        place >= LENGTH - torch.tensor(lengths)[:, None],
    ):
        together = lower(loaded, point, input_ids, is_token)
        logits = upper(loaded, point, input_ids, together, is_token)
        for row in range(len(lengths)):
            ids = input_ids[row, is_token[row]][None]
            alone = lower(loaded, point, ids)
            for one, other in (
                (together[row, is_token[row]], alone[0]),
                (logits[row, is_token[row]], upper(loaded, point, ids, alone)[0]),
            ):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@each_family
def test_what_is_not_finite_at_padding_reaches_no_gradient(models, family, input_ids):
    loaded = models[family]
    point = resolve_hook(loaded, layer=1, hook="resid_post")
    is_token = torch.arange(LENGTH).expand(3, -1) >= 5
    gradients = []
    for rubbish in (math.nan, math.inf, 0.0):
        activations = lower(loaded, point, input_ids, is_token)
        activations[~is_token] = rubbish
        activations.requires_grad_()
        loss = upper(loaded, point, input_ids, activations, is_token)[is_token].logsumexp(-1).sum()
        gradients += torch.autograd.grad(loss, activations)
    assert gradients[0][is_token].isfinite().all()
    assert torch.equal(gradients[0], gradients[2])
    assert torch.equal(gradients[1], gradients[2])

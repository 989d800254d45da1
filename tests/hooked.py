"""Hook points of tiny models of all families: how tests run up to them and on from them."""

import pytest
import torch

from dmsae.hooks import run_lower, run_upper
from tests.tiny import FAMILIES, VOCAB_SIZE

HOOKS = ("resid_post", "mlp_out", "attn_out")
N_LAYERS, LENGTH = 4, 14

each_family = pytest.mark.parametrize("family", FAMILIES)
each_hook = pytest.mark.parametrize("hook", HOOKS)


def make_input_ids():
    """Draw three contexts."""
    return torch.randint(3, VOCAB_SIZE, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def everywhere(input_ids):
    """Mark every position as a token."""
    return torch.ones_like(input_ids, dtype=torch.bool)


def lower(loaded, point, input_ids, is_token=None):
    """Run up to a hook point, without padding unless told otherwise."""
    is_token = everywhere(input_ids) if is_token is None else is_token
    return run_lower(loaded, point, input_ids=input_ids, is_token=is_token)


def upper(loaded, point, input_ids, activations, is_token=None):
    """Run on from a hook point, without padding unless told otherwise."""
    is_token = everywhere(input_ids) if is_token is None else is_token
    return run_upper(loaded, point, input_ids=input_ids, is_token=is_token, activations=activations)

"""Contexts of random tokens, and what reads a tiny model's activations of them."""

import torch

from dmsae.activations import Harvester
from dmsae.config import ActivationConfig
from dmsae.contexts import Contexts
from dmsae.hooks import resolve_hook
from dmsae.models import LoadedModel
from dmsae.windows import HarvestedWindows

BOS = 0


def make_contexts(n_contexts: int = 40, length: int = 8, seed: int = 0) -> Contexts:
    """Rows of random tokens; each third row is padded, each second one starts with BOS."""
    input_ids = torch.randint(3, 512, (n_contexts, length), generator=torch.Generator().manual_seed(seed))
    input_ids[::2, 0] = BOS
    is_token = torch.ones(n_contexts, length, dtype=torch.bool)
    is_token[::3, length // 2 :] = False
    documents = (torch.arange(n_contexts) // 4)[:, None].expand(n_contexts, length)
    return Contexts(input_ids, is_token, documents, n_contexts // 4, 0)


def harvester(loaded: LoadedModel, **settings: object) -> Harvester:
    config = ActivationConfig.model_validate({"layer": 1, "model_batch_contexts": 7, **settings})
    return Harvester(loaded, resolve_hook(loaded, layer=config.layer, hook=config.hook), config)


def make_source(
    loaded: LoadedModel, contexts: Contexts | None = None, **settings: object
) -> HarvestedWindows:
    """Three windows of a tiny model's activations, unless other contexts are given."""
    reader = harvester(loaded, **{"model_batch_contexts": 64, **settings})
    return HarvestedWindows(reader, contexts or make_contexts(800))

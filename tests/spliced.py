"""A tiny language model cut after one layer, with contexts, and SAEs for its residual stream."""

import math

import torch
from torch import Tensor

from dmsae.activations import ContextBatch
from dmsae.hooks import resolve_hook, run_lower, run_upper
from dmsae.sae import Core, CoreLatent, MatryoshkaSae, Provenance
from dmsae.splicing import take_rows
from tests.tiny import VOCAB_SIZE, tiny_llama, tiny_loaded

LAYER = 1
D_MODEL = 32
PROVENANCE = Provenance("revision-1", "model.layers.1", "float32", (0, 2), (0.8, 0.1, 0.1), "salt")


class CutModel:
    """A tiny Llama in the precision asked for; calling it runs the layers after the cut."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._loaded = tiny_loaded(tiny_llama().to(dtype))
        self._hook = resolve_hook(self._loaded, layer=LAYER, hook="resid_post")

    def __call__(self, batch: ContextBatch, activations: Tensor) -> Tensor:
        return run_upper(
            self._loaded,
            self._hook,
            input_ids=batch.input_ids,
            is_token=batch.is_token,
            activations=activations,
        )

    def contexts(self, lengths: list[int], *, n_columns: int = 0, seed: int = 0) -> ContextBatch:
        """Make one context of each length; the first token of each is not kept, two make up a document."""
        generator = torch.Generator().manual_seed(seed)
        n_columns = max(n_columns, *lengths)
        input_ids = torch.randint(3, VOCAB_SIZE, (len(lengths), n_columns), generator=generator)
        is_token = torch.arange(n_columns) < torch.tensor(lengths)[:, None]
        is_kept = is_token.clone()
        is_kept[:, 0] = False
        document_index = (torch.arange(len(lengths)) // 2)[:, None].expand(is_token.shape)
        activations = run_lower(self._loaded, self._hook, input_ids=input_ids, is_token=is_token)
        return ContextBatch(input_ids, is_token, document_index, activations, is_kept)


def in_batches(batch: ContextBatch, n_contexts: int) -> list[ContextBatch]:
    """Cut one batch into batches of so many contexts."""
    return [
        take_rows(batch, slice(start, start + n_contexts))
        for start in range(0, len(batch.activations), n_contexts)
    ]


def pad(batch: ContextBatch, n_columns: int) -> ContextBatch:
    """Put columns of padding behind a batch, with ids and activations that must never matter: NaN."""
    n = len(batch.activations)
    return ContextBatch(
        torch.cat([batch.input_ids, torch.full((n, n_columns), 7)], dim=1),
        torch.cat([batch.is_token, torch.zeros(n, n_columns, dtype=torch.bool)], dim=1),
        torch.cat([batch.document_index, batch.document_index[:, -1:].expand(n, n_columns)], dim=1),
        torch.cat([batch.activations, torch.full((n, n_columns, D_MODEL), math.nan)], dim=1),
        torch.cat([batch.is_kept, torch.zeros(n, n_columns, dtype=torch.bool)], dim=1),
    )


def rms_of(batch: ContextBatch) -> float:
    """Give the activation rms of the kept tokens."""
    return batch.activations[batch.is_kept].square().sum(dim=1).mean().sqrt().item()


def random_sae(
    *, n_latents: int = 24, prefix_widths: tuple[int, ...] = (10, 16, 24), n_core: int = 0, seed: int = 1
) -> MatryoshkaSae:
    """Draw an SAE of which some latents fire often, some seldom."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(n_latents, D_MODEL, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    return MatryoshkaSae(
        W_enc=(1.2 * W_dec.T).contiguous(),
        b_enc=0.1 * torch.randn(n_latents, generator=generator),
        W_dec=W_dec,
        b_dec=0.05 * torch.randn(D_MODEL, generator=generator),
        threshold=0.3 * torch.rand(n_latents, generator=generator),
        prefix_widths=list(prefix_widths),
        n_core=n_core,
    )


def core_of(sae: MatryoshkaSae, rows: list[int], *, rms: float = 1.0) -> Core:
    """Cut a core out of an SAE; its latents are of job `job`, cycle 0."""
    return Core(
        W_enc=sae.W_enc[:, rows].contiguous(),
        W_dec=sae.W_dec[rows],
        b_enc=sae.b_enc[rows],
        threshold=sae.threshold[rows],
        b_dec=sae.b_dec,
        rms=rms,
        median_norm=rms,
        provenance=PROVENANCE,
        latents=[CoreLatent(f"job.0.{row}", "job", 0, row, 1) for row in rows],
    )

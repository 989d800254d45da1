"""At which texts does each latent of a new core fire, how strongly, and how often?

The evaluation part, on which nothing was trained and nothing selected, is encoded once more by the rows of
the core alone, a block of them at a time; of each the strongest and some random firings of each decile are
chosen. Which tokens it promotes is left to `logit_lens.py`, what is stored of all this to `snippet_files.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dmsae.activations import ContextBatch
from dmsae.config import SnippetConfig
from dmsae.randomness import named_generator
from dmsae.sae import MatryoshkaSae
from dmsae.splicing import kept, split_rows

N_DECILES = 10
BLOCK_BYTES = 64 << 20
"""Latent activations that are held at once: of some latents at all kept tokens."""

Kind = Literal["strongest", "random"]
Places = Int[NDArray[np.int64], " n"]


class Snippet(NamedTuple):
    """Some tokens around one at which a latent fires."""

    kind: Kind
    decile: int
    token_ids: list[int]
    activations: list[float | None]
    """At normalised scale; None where a token is not kept, so that nothing is known of it."""
    peak: int
    """Which of the tokens it was chosen for."""


class LatentFirings(NamedTuple):
    """How one latent fires on the evaluation part."""

    n_tokens: int
    """Kept tokens."""
    n_firings: int
    low: float
    """Smallest nonzero activation; 0 where it never fires."""
    high: float
    n_firings_of_deciles: list[int]
    snippets: list[Snippet]
    """The strongest by their peaks, then random ones: the first of each decile, the second of each, ..."""


@dataclass(frozen=True)
class ReadTokens:
    """All positions of some contexts, one after the other, and where the kept tokens are among them."""

    input_ids: Int[NDArray[np.int64], " n_positions"]
    kept_place: Int[NDArray[np.int64], " n_positions"]
    """Place among the kept tokens; -1 where a token is not kept."""
    run_start: Int[NDArray[np.int64], " n_positions"]
    """Where the tokens of one document in one context begin around a position, and where they end."""
    run_end: Int[NDArray[np.int64], " n_positions"]
    position: Int[NDArray[np.int64], " n_tokens"]
    """Of each kept token."""
    context: Int[NDArray[np.int64], " n_tokens"]
    """Row of each kept token, counted over all batches."""

    @classmethod
    def of(cls, batches: Sequence[ContextBatch]) -> "ReadTokens":
        """Lay out batches in their order."""
        input_ids, is_token, document, is_kept = (
            torch.cat([getattr(batch, name).flatten() for batch in batches]).numpy()
            for name in ("input_ids", "is_token", "document_index", "is_kept")
        )
        columns = batches[0].is_kept.shape[1]
        context = np.arange(len(input_ids)) // columns
        about = np.stack([context, is_token, document])
        starts = np.concatenate([[0], (about[:, 1:] != about[:, :-1]).any(axis=0).nonzero()[0] + 1])
        lengths = np.diff(np.append(starts, len(input_ids)))
        position = is_kept.nonzero()[0]
        kept_place = np.full(len(input_ids), -1)
        kept_place[position] = np.arange(len(position))
        return cls(
            input_ids.astype(np.int64),
            kept_place,
            run_start=starts.repeat(lengths),
            run_end=(starts + lengths).repeat(lengths),
            position=position,
            context=context[position],
        )

    def around(self, place: int, n_each_side: int) -> slice:
        """Give the positions around a kept token, of its document in its context alone."""
        position = self.position[place]
        start = max(position - n_each_side, self.run_start[position])
        return slice(start, min(position + n_each_side + 1, self.run_end[position]))


@torch.no_grad()
def read_firings(
    batches: Sequence[ContextBatch], sae: MatryoshkaSae, rows: Sequence[int], *, rms: float, seed: int
) -> Iterator["FiringReader"]:
    """Encode all kept tokens of `batches` by some rows of `sae`, and give each row's reader in turn.

    What a reader draws at random is its row's own under `seed`, whichever other rows there are.
    """
    tokens = ReadTokens.of(batches)
    n_together = max(1, BLOCK_BYTES // (4 * max(1, len(tokens.position))))
    for start in range(0, len(rows), n_together):
        block = rows[start : start + n_together]
        acts = _encode(batches, sae, block, rms=rms)
        for row, row_acts in zip(block, acts, strict=True):
            yield FiringReader(tokens, row_acts, named_generator(seed, "snippets", row))


@dataclass(frozen=True)
class FiringReader:
    """What one latent does at all kept tokens."""

    tokens: ReadTokens
    acts: Float[NDArray[np.float32], " n_tokens"]
    generator: torch.Generator

    def read(self, config: SnippetConfig) -> LatentFirings:
        """Choose the snippets of this latent.

        With a the nonzero activations at all kept tokens, decile d of 10 holds those with
        ceil(10 (a - min a) / (max a - min a)) = d, the smallest in the first; all are in the tenth where they
        are equal. The strongest are the peaks of the `strongest` contexts whose peaks are largest; the random
        ones of a decile are drawn from its other firings, each as likely as any other.

        Mutates: the generator.
        """
        firings = self.acts.nonzero()[0]
        deciles, (low, high) = deciles_of(self.acts[firings])
        strongest = self._strongest(firings, config.strongest)
        is_free = ~np.isin(firings, strongest)
        drawn = [
            self._draw(firings[is_free & (deciles == decile)], config.per_decile)
            for decile in range(1, N_DECILES + 1)
        ]
        turns = [places[turn] for turn in range(config.per_decile) for places in drawn if turn < len(places)]
        chosen: list[tuple[Kind, int]] = [("strongest", place) for place in strongest]
        chosen += [("random", place) for place in turns]
        return LatentFirings(
            n_tokens=len(self.acts),
            n_firings=len(firings),
            low=low,
            high=high,
            n_firings_of_deciles=np.bincount(deciles, minlength=N_DECILES + 1)[1:].tolist(),
            snippets=[
                self._snippet(kind, int(deciles[firings.searchsorted(place)]), place, config.context)
                for kind, place in chosen
            ],
        )

    def _strongest(self, firings: Places, n_wanted: int) -> list[int]:
        """Give the largest firing of each context, the largest first; the earlier of equals."""
        by_strength = firings[np.argsort(-self.acts[firings], kind="stable")]
        _, first = np.unique(self.tokens.context[by_strength], return_index=True)
        peaks: list[int] = by_strength[np.sort(first)][:n_wanted].tolist()
        return peaks

    def _draw(self, places: Places, n_wanted: int) -> list[int]:
        order = torch.randperm(len(places), generator=self.generator)[:n_wanted].numpy()
        drawn: list[int] = places[order].tolist()
        return drawn

    def _snippet(self, kind: Kind, decile: int, place: int, context: int) -> Snippet:
        around = self.tokens.around(place, context)
        known = self.tokens.kept_place[around]
        acts = [float(self.acts[other]) if other >= 0 else None for other in known.tolist()]
        token_ids: list[int] = self.tokens.input_ids[around].tolist()
        return Snippet(kind, decile, token_ids, acts, int(self.tokens.position[place] - around.start))


def deciles_of(
    acts: Float[NDArray[np.float32], " n_firings"],
) -> tuple[Int[NDArray[np.int64], " n_firings"], tuple[float, float]]:
    """Give the decile of each nonzero activation, 1 to 10, and the ends of their range, 0 without any."""
    if len(acts) == 0:
        return np.zeros(0, dtype=np.int64), (0.0, 0.0)
    low, high = float(acts.min()), float(acts.max())
    if low == high:
        return np.full(len(acts), N_DECILES), (low, high)
    shares = (acts.astype(np.float64) - low) / (high - low)
    return np.ceil(N_DECILES * shares).clip(1, N_DECILES).astype(np.int64), (low, high)


def _encode(
    batches: Sequence[ContextBatch], sae: MatryoshkaSae, rows: Sequence[int], *, rms: float
) -> Float[NDArray[np.float32], "n_rows n_tokens"]:
    """Give what some latents make of all kept tokens, at normalised scale."""
    index = torch.tensor(rows, device=sae.W_dec.device)
    part = replace(
        sae,
        W_enc=sae.W_enc[:, index],
        b_enc=sae.b_enc[index],
        W_dec=sae.W_dec[index],
        threshold=sae.threshold[index],
        prefix_widths=[len(rows)],
        n_core=0,
    )
    acts = torch.empty(len(rows), sum(int(batch.is_kept.sum()) for batch in batches))
    n_read = 0
    for batch in split_rows(batches):
        of_batch = part.encode(kept(batch, index.device) / rms)
        acts[:, n_read : n_read + len(of_batch)] = of_batch.T
        n_read += len(of_batch)
    return acts.numpy()

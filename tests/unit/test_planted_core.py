"""On a problem whose answer is known, trained for real, the core is what was planted.

Activations are sparse sums of known directions. Few of these move the next-token loss; the others are as
strong and as frequent, and the SAE learns them too, but nothing reads them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dmsae.activations import ContextBatch, Scale
from dmsae.attribution import Attribution, attribute
from dmsae.config import CycleSpec
from dmsae.identity import lineage_record
from dmsae.matching import Firings, align_all, matches_of, pairs_of
from dmsae.metrics import evaluate
from dmsae.randomness import named_generator
from dmsae.sae import Core, MatryoshkaSae
from dmsae.selection import Selection, build_core, select
from dmsae.training import Trainer
from tests.spliced import PROVENANCE, rms_of
from tests.tiny import tiny_spec
from tests.trained import Batches

D_MODEL, N_DIRECTIONS, N_READ = 32, 20, 5
FIRES = 0.1
BATCH_TOKENS, N_STEPS = 256, 500


class World(NamedTuple):
    """Known directions, of which the first N_READ are read by the model."""

    directions: Tensor

    def __call__(self, _batch: ContextBatch | None, resid: Tensor) -> Tensor:
        """Run the layers above: each read direction speaks for a token of its own, one token for none."""
        logits = 4 * resid @ self.directions[:N_READ].T
        return torch.cat([logits, torch.ones(*resid.shape[:2], 1)], dim=-1)

    def contexts(self, n_contexts: int, *, seed: int, length: int = 16) -> ContextBatch:
        """Draw activations, and next tokens as the model itself predicts them."""
        generator = torch.Generator().manual_seed(seed)
        shape = (n_contexts, length)
        fires = torch.rand(*shape, N_DIRECTIONS, generator=generator) < FIRES
        strengths = 0.8 + 0.8 * torch.rand(*shape, N_DIRECTIONS, generator=generator)
        noise = 0.02 * torch.randn(*shape, D_MODEL, generator=generator)
        resid = (fires * strengths) @ self.directions + noise
        everywhere = torch.ones(shape, dtype=torch.bool)
        probabilities = self(None, resid).softmax(dim=-1).flatten(0, 1)
        spoken = torch.multinomial(probabilities, 1, generator=generator).view(shape)
        documents = torch.arange(n_contexts)[:, None].expand(shape)
        return ContextBatch(spoken.roll(1, dims=1), everywhere, documents, resid, everywhere)


class Cycle(NamedTuple):
    """What one cycle found."""

    sae: MatryoshkaSae
    attribution: Attribution
    selection: Selection
    core: Core


def run_cycle(world: World, *, cycle_index: int, given: Core | None, seed: int = 0) -> Cycle:
    """Train, attribute and select as the trainer does; a chain of its own for every seed."""
    spec = CycleSpec.model_validate(
        tiny_spec(
            "/models/planted",
            cycle_index=cycle_index,
            job_id="dst_1",
            sae={"n_latents": 48, "k": 3, "block_widths": [N_DIRECTIONS, 30]},
            training={"n_tokens": N_STEPS * BATCH_TOKENS, "batch_tokens": BATCH_TOKENS, "lr": 1e-2},
            selection={"max_core": 16},
        )
    )
    rms = rms_of(world.contexts(200, seed=0))
    tokens = world.contexts(N_STEPS * BATCH_TOKENS // 16, seed=1 + cycle_index + seed).activations.flatten(
        0, 1
    )
    trainer = Trainer(spec.config, given, Batches(tokens / rms, BATCH_TOKENS), seed=cycle_index + seed)
    for _ in trainer.run():
        pass
    sae = trainer.finish().sae
    batches = [world.contexts(200, seed=100)]
    attribution = attribute(batches, world, sae, rms=rms, config=spec.config.attribution)
    selection = select(attribution, sae, spec=spec, given=given)
    core = build_core(selection, sae, scale=Scale(rms, rms), provenance=PROVENANCE)
    return Cycle(sae, attribution, selection, core)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep such small products on one thread: handing them over takes longer than they do."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def world() -> World:
    square = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(7))
    return World(torch.linalg.qr(square).Q[:N_DIRECTIONS])


@pytest.fixture(scope="module")
def first(world: World) -> Cycle:
    return run_cycle(world, cycle_index=0, given=None)


def cosines(world: World, rows: Tensor) -> Tensor:
    """Give the cosine of each decoder row with each planted direction."""
    return rows @ world.directions.T


def test_the_directions_that_move_the_loss_are_in_the_core_and_nothing_else_is(world, first):
    found = cosines(world, first.core.W_dec)
    assert (found[:, :N_READ].max(dim=0).values > 0.9).all()
    assert (found[:, :N_READ].max(dim=1).values > 0.9).all()
    assert (found[:, N_READ:].max(dim=1).values < 0.3).all()


def test_the_directions_that_nothing_reads_were_candidates_too(world, first):
    candidates = first.sae.W_dec[: first.sae.prefix_widths[0]]
    learned = cosines(world, candidates)[:, N_READ:].max(dim=0).values > 0.9
    assert learned.sum() > N_READ
    # by energy alone they would have been selected
    strongest = first.attribution.scores["energy"].argsort(descending=True)[: len(first.selection.core)]
    assert (cosines(world, candidates[strongest])[:, N_READ:].max(dim=1).values > 0.9).any()


def test_the_next_cycle_selects_the_planted_core_again_as_the_same_latents(world, first):
    second = run_cycle(world, cycle_index=1, given=first.core)
    assert torch.equal(second.sae.W_enc[:, : first.core.n_core], first.core.W_enc)
    assert second.selection.retention == 1
    known = {latent.latent_id for latent in first.selection.core}
    assert known <= {latent.latent_id for latent in second.selection.core}
    batches = [world.contexts(200, seed=101)]
    evaluation = evaluate(batches, world, second.sae, rms=first.core.rms, previous=first.core)
    record = lineage_record(second.selection, evaluation.drift)
    assert not record["identity_lost"]
    assert min(entry["decoder_cosine"] for entry in record["core"] if entry["decoder_cosine"]) > 0.9


def test_two_chains_find_the_planted_core_and_match_it_while_random_latents_match_nothing(world, first):
    other = run_cycle(world, cycle_index=0, given=None, seed=1000)
    cores = [first.core, other.core, random_like(first.core)]
    generators = {pair: named_generator(0, "match", *pair) for pair in pairs_of(3)}
    aligned = align_all(cores, min_cosine=0.7, generators=generators)
    firings = Firings(cores, aligned, torch.device("cpu"))
    firings.add(world.contexts(200, seed=102).activations.flatten(0, 1))
    matches = {
        pair: matches_of(found, firings.correlations(pair), min_correlation=0.5)
        for pair, found in aligned.items()
    }
    found = {direction for match in matches[0, 1] for direction in read_by(world, first.core, match.a_index)}
    assert found == set(range(N_READ))
    assert matches[0, 2] == matches[1, 2] == []
    assert aligned[0, 1].best_cosine > 0.9 > 2 * aligned[0, 1].best_cosine_random


def read_by(world: World, core: Core, core_index: int) -> list[int]:
    """Give the planted directions that a latent of a core stands for."""
    return (cosines(world, core.W_dec)[core_index] > 0.9).nonzero().flatten().tolist()


def random_like(core: Core) -> Core:
    """A core of as many random directions."""
    rows = torch.randn(core.W_dec.shape, generator=torch.Generator().manual_seed(5))
    rows /= rows.norm(dim=1, keepdim=True)
    names = [replace(latent, latent_id=f"dst_2.0.{place}") for place, latent in enumerate(core.latents)]
    return replace(core, W_dec=rows, W_enc=rows.T.contiguous(), latents=names)

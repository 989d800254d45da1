"""Claims about the SAE: what it encodes and decodes, how it starts around a core."""

import math

import pytest
import torch
from torch import Tensor

from dmsae.config import SaeConfig
from dmsae.errors import CycleFailed
from dmsae.sae import (
    Core,
    CoreLatent,
    MatryoshkaSae,
    Provenance,
    geometric_median,
    init_sae,
    normalise_rows_,
)

PROVENANCE = Provenance("revision-1", "model.layers.1", "float32", (0, 2), (0.8, 0.1, 0.1), "salt")


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


def make_core(d_model: int, n_core: int, *, seed: int = 5) -> Core:
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(d_model, n_core, generator=generator)
    return Core(
        W_enc=W_enc,
        W_dec=normalise_rows_(torch.randn(n_core, d_model, generator=generator)),
        b_enc=torch.randn(n_core, generator=generator),
        threshold=torch.rand(n_core, generator=generator),
        b_dec=torch.randn(d_model, generator=generator),
        rms=1.5,
        median_norm=1.25,
        provenance=PROVENANCE,
        latents=[CoreLatent(f"job.0.{i}", "job", 0, i, 1) for i in range(n_core)],
    )


def start(config: SaeConfig, *, core: Core | None = None, d_model: int = 6, seed: int = 0) -> MatryoshkaSae:
    first_batch = torch.randn(32, d_model, generator=torch.Generator().manual_seed(9))
    return init_sae(
        config, d_model, core=core, first_batch=first_batch, generator=torch.Generator().manual_seed(seed)
    )


HAND_SET = MatryoshkaSae(
    W_enc=rows([1.0, 0.0, 1.0], [0.0, 1.0, -1.0]),
    b_enc=torch.tensor([0.0, 0.5, 0.0]),
    W_dec=rows([1.0, 0.0], [0.0, 1.0], [0.6, -0.8]),
    b_dec=torch.tensor([1.0, 0.0]),
    threshold=torch.tensor([0.0, 1.0, 2.0]),
    prefix_widths=[1, 3],
    n_core=0,
)


def test_a_latent_is_active_only_strictly_above_its_threshold() -> None:
    x = rows([2.0, 0.5], [4.0, 1.0])
    assert torch.equal(HAND_SET.pre_acts(x), rows([1.0, 1.0, 0.5], [3.0, 1.5, 2.0]))
    assert torch.equal(HAND_SET.encode(x), rows([1.0, 0.0, 0.0], [3.0, 1.5, 0.0]))


def test_each_prefix_reconstructs_from_its_first_latents_alone() -> None:
    acts = rows([2.0, 3.0, 5.0])
    assert torch.equal(HAND_SET.decode(acts, 1), rows([3.0, 0.0]))
    assert torch.equal(HAND_SET.decode(acts, 2), rows([3.0, 3.0]))
    torch.testing.assert_close(HAND_SET.decode(acts), rows([6.0, -1.0]))
    narrow, wide = HAND_SET.decode_prefixes(acts)
    assert torch.equal(narrow, HAND_SET.decode(acts, 1))
    torch.testing.assert_close(wide, HAND_SET.decode(acts))


def test_leading_dimensions_are_kept() -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    acts = HAND_SET.encode(x)
    assert acts.shape == (3, 4, 3)
    torch.testing.assert_close(HAND_SET.decode(acts)[1, 2], HAND_SET.decode(HAND_SET.encode(x[1, 2])))


def test_the_geometric_median_of_points_on_a_line_is_their_middle_and_ignores_an_outlier() -> None:
    points = rows([0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1e4, 0.0])
    torch.testing.assert_close(geometric_median(points), torch.tensor([2.0, 0.0]), atol=1e-3, rtol=0)


def test_no_step_away_from_the_geometric_median_lessens_the_mean_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(50, 4, generator=generator).exp()
    median = geometric_median(points)

    def mean_distance(point: Tensor) -> float:
        return (points.double() - point.double()).norm(dim=1).mean().item()

    steps = 0.01 * torch.randn(200, 4, generator=generator)
    assert all(mean_distance(median + step) > mean_distance(median) for step in steps)
    assert mean_distance(median) < mean_distance(points.mean(dim=0))


def test_the_geometric_median_of_equal_points_is_that_point() -> None:
    points = torch.full((4, 3), 0.3)
    torch.testing.assert_close(geometric_median(points), points[0])


CONFIG = SaeConfig(n_latents=16, k=2, block_widths=[3, 6])


def test_without_a_core_the_encoder_starts_as_the_transpose_of_unit_decoder_rows() -> None:
    sae = start(CONFIG)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(16))
    assert not sae.b_enc.any()
    assert sae.prefix_widths == [3, 6, 16]
    assert sae.n_core == 0


def test_the_core_comes_first_with_its_encoder_vectors_bit_for_bit_and_widens_every_prefix() -> None:
    core = make_core(6, 4)
    sae = start(CONFIG, core=core)
    assert torch.equal(sae.W_enc[:, :4], core.W_enc)
    assert torch.equal(sae.W_enc[:, 4:], sae.W_dec[4:].T)
    torch.testing.assert_close(sae.W_dec[:4], core.W_enc.T / core.W_enc.T.norm(dim=1, keepdim=True))
    assert not sae.b_enc.any()
    assert sae.prefix_widths == [7, 10, 16]
    assert sae.n_core == 4


def test_core_norm_unit_brings_encoder_vectors_to_unit_norm_once() -> None:
    config = CONFIG.model_copy(update={"core_norm": "unit"})
    core = make_core(6, 4)
    once = start(config, core=core).W_enc[:, :4]
    torch.testing.assert_close(once, core.W_enc / core.W_enc.norm(dim=0))
    again = start(config, core=Core(**{**vars(core), "W_enc": once})).W_enc[:, :4]
    assert torch.equal(again, once)


def test_a_random_core_decoder_owes_nothing_to_the_core() -> None:
    config = CONFIG.model_copy(update={"core_decoder": "random"})
    one, other = (start(config, core=make_core(6, 4, seed=seed)) for seed in (5, 6))
    assert torch.equal(one.W_dec, other.W_dec)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(16))


def test_the_start_depends_on_its_generator_alone() -> None:
    torch.manual_seed(1)
    one = start(CONFIG)
    torch.manual_seed(2)
    same, other = start(CONFIG), start(CONFIG, seed=1)
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


def broken(core: Core, core_index: int, value: float) -> Core:
    W_enc = core.W_enc.clone()
    W_enc[:, core_index] = value
    return Core(**{**vars(core), "W_enc": W_enc})


@pytest.mark.parametrize(
    ("core", "failure"),
    [
        (make_core(6, 0), "core_empty"),
        (make_core(5, 4), "core_mismatch"),
        (make_core(6, 10), "core_too_large"),
        (make_core(6, 40), "core_too_large"),
        (broken(make_core(6, 4), 2, 0.0), "core_mismatch"),
        (broken(make_core(6, 4), 2, math.nan), "core_mismatch"),
    ],
)
def test_a_core_that_does_not_fit_is_refused(core: Core, failure: str) -> None:
    with pytest.raises(CycleFailed) as caught:
        start(CONFIG, core=core)
    assert caught.value.failure == failure
    assert caught.value.param is not None


def test_the_widest_core_that_fits_is_taken() -> None:
    assert start(CONFIG, core=make_core(6, 9)).prefix_widths == [12, 15, 16]


def test_a_core_refuses_activations_of_other_provenance_and_names_the_field() -> None:
    core = make_core(6, 4)
    core.require_provenance(PROVENANCE)
    other = Provenance("revision-1", "model.layers.2", "float32", (0, 2), (0.8, 0.1, 0.1), "salt")
    with pytest.raises(CycleFailed, match=r"model\.layers\.2") as caught:
        core.require_provenance(other)
    assert caught.value.failure == "core_mismatch"
    assert caught.value.param == "core.hook"

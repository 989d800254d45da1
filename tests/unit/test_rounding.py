"""In which type activations are kept for training, and what that costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmsae.rounding import Halves, bytes_per_token, round_to_half, rounding_error

HALF_ULP = 2.0**-11
"""Largest relative error of a float16."""


def random_x(n_tokens=64, d_model=48, seed=0):
    return torch.randn(n_tokens, d_model, generator=torch.Generator().manual_seed(seed))


@given(st.integers(-100, 100), st.integers(0, 5))
def test_no_number_loses_more_than_half_a_float16_whatever_the_size_of_its_token(exponent, seed):
    x = random_x(seed=seed) * 2.0**exponent
    rounded = round_to_half(x).float()
    assert ((rounded - x).abs() <= HALF_ULP * x.abs() + x.abs().amax() * 2.0**-39).all()


@given(st.integers(-90, 90))
def test_a_token_twice_as_large_is_rounded_in_the_same_way(exponent):
    x = random_x()
    plain, scaled = round_to_half(x), round_to_half(x * 2.0**exponent)
    assert torch.equal(scaled.halves, plain.halves)
    assert torch.equal(scaled.exponents, plain.exponents + exponent)


def test_a_sink_far_beyond_float16_and_a_whisper_below_it_both_keep_their_size():
    x = torch.tensor([3.0e38, 1e-30, 0.0, 1e-41])[:, None].expand(4, 6)
    rounded = round_to_half(x).float()
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded[:2], x[:2], rtol=HALF_ULP, atol=0)
    assert torch.equal(rounded[2], x[2])
    assert (rounded[3] - x[3]).abs().max() < 1e-38


def test_what_a_model_in_bfloat16_gives_is_kept_as_it_is():
    x = random_x().bfloat16().float()
    assert torch.equal(round_to_half(x).float(), x)


def test_the_error_is_told_relative_to_the_size():
    x = random_x(1000)
    error = rounding_error(x, round_to_half(x).float())
    assert 0 < error.relative < HALF_ULP
    assert (error + error).relative == pytest.approx(error.relative)
    assert rounding_error(torch.zeros(3, 2), torch.zeros(3, 2)).relative == 0


def test_some_tokens_are_the_same_numbers_as_those_of_all():
    halves, places = round_to_half(random_x()), torch.tensor([5, 0, 63, 5])
    assert torch.equal(halves.take(places), halves.float()[places])


def test_no_token_at_all_is_rounded_to_none():
    halves = round_to_half(torch.zeros(0, 6))
    assert halves.float().shape == (0, 6)
    assert halves.n_bytes == 0


def test_a_token_takes_as_many_bytes_as_is_said():
    x = random_x(10)
    halves: Halves = round_to_half(x)
    assert halves.n_bytes + 10 * 4 == 10 * bytes_per_token(48)

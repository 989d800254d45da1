"""The logit lens names the tokens that a direction moves, as the plain product over all of them says."""

import pytest
import torch

from dmsae.logit_lens import final_norm, logit_lenses
from dmsae.token_texts import TokenTexts
from tests.tiny import FAMILIES, tiny_family_model, tiny_loaded, tiny_tokenizer

LAST_NORMS = {"gpt_neox": "gpt_neox.final_layer_norm", "gpt2": "transformer.ln_f"}


def family(name):
    """A tiny model whose last norm has gains of all sizes, some negative, and where it can a bias."""
    model = tiny_family_model(name)
    norm = model.get_submodule(LAST_NORMS.get(name, "model.norm"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return tiny_loaded(model), norm


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lens_is_the_decoder_row_through_the_last_norms_gain_and_the_unembedding(name):
    loaded, norm = family(name)
    directions = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    weight = norm.weight.detach()
    moved = directions * (1 + weight if name == "gemma2" else weight)
    if name in LAST_NORMS:
        moved = (directions - directions.mean(dim=1, keepdim=True)) * weight
    logits = moved @ loaded.model.get_output_embeddings().weight.T
    texts = TokenTexts(tiny_tokenizer())
    lenses = logit_lenses(loaded, directions, n_tokens=4, texts=texts)
    for row, lens in zip(logits, lenses, strict=True):
        assert lens.final_norm == "folded"
        order = row.argsort(descending=True).tolist()
        assert [entry.token for entry in lens.promoted] == [texts.of(i) for i in order[:4]]
        assert [entry.token for entry in lens.suppressed] == [texts.of(i) for i in order[:-5:-1]]
        shown = [entry.value for entry in (*lens.promoted, *lens.suppressed)]
        expected = row[[*order[:4], *order[:-5:-1]]]
        assert torch.allclose(torch.tensor(shown), expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_norm_before_its_head_is_said_to_have_none():
    loaded, _ = family("llama")
    loaded.model.model.norm = torch.nn.Identity()
    assert final_norm(loaded) is None
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    lens = logit_lenses(loaded, directions, n_tokens=1, texts=TokenTexts(tiny_tokenizer()))[0]
    best = (directions[0] @ loaded.model.get_output_embeddings().weight.T).argmax().item()
    assert (lens.final_norm, lens.promoted[0].token) == ("left_out", TokenTexts(tiny_tokenizer()).of(best))

"""What the model says with a latent ablated or steered: against transformers and a hook written by hand."""

import math
from pathlib import Path

import pytest
import torch

from dmsae.contexts import tokenise
from dmsae.errors import CycleFailed
from dmsae.hooks import resolve_hook
from dmsae.matching import core_acts
from dmsae.probe_config import Ablate, PromptConfig, Steer
from dmsae.prompting import PromptReader, divergence, read_prompt
from tests.hooked import each_family, each_hook
from tests.spliced import core_of, random_sae
from tests.tiny import tiny_config, tiny_family_model, tiny_loaded

TEXT = "The import statement binds names, and the with statement leaves them."
RMS = 2.5
ROW = 2
N_NEW = 6
STEER = Steer(kind="steer", strength=7.5)
ABLATE = Ablate(kind="ablate")


def reader_of(family, hook="resid_post", *, max_norm=math.inf):
    loaded = tiny_loaded(tiny_family_model(family))
    core = core_of(random_sae(), [0, 3, 5, 8], rms=RMS)
    return PromptReader(loaded, resolve_hook(loaded, layer=1, hook=hook), core, max_norm)


def ids_of(reader, text=TEXT):
    return torch.tensor(tokenise([text], reader.loaded.tokenizer))


@torch.no_grad()
def by_hand(reader, ids, change):
    """Greedy decoding without any cache, the module hooked by hand; what the latent adds is written out."""
    core, model = reader.core, reader.loaded.model
    w, d = core.W_enc[:, ROW], core.W_dec[ROW]

    def hook(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        pre_act = (x / RMS - core.b_dec) @ w + core.b_enc[ROW]
        added = (RMS * pre_act * (pre_act > core.threshold[ROW]))[..., None] * d
        y = x - added if change == ABLATE else x + STEER.strength * d / d.norm()
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = model.get_submodule(reader.hook.path).register_forward_hook(hook) if change else None
    first, new = None, []
    for _ in range(N_NEW):
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        first = logits if first is None else first
        new.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
    if handle is not None:
        handle.remove()
    return first, new


@each_family
@pytest.mark.parametrize("change", [None, ABLATE, STEER], ids=["plain", "ablated", "steered"])
def test_what_is_said_is_what_transformers_says_with_a_hook_written_by_hand(family, change):
    reader = reader_of(family)
    ids = ids_of(reader)
    edit = None if change is None else reader.edit(ROW, change)
    said = reader.say(ids, n_new_tokens=N_NEW, edit=edit)
    logits, new_ids = by_hand(reader, ids, change)
    assert (reader.latent_acts(reader.activations(ids))[..., ROW] > 0).any()
    assert torch.allclose(said.logits, logits, rtol=1e-4, atol=1e-4)
    assert said.new_ids == new_ids
    if change is not None:
        assert divergence(reader.say(ids, n_new_tokens=0).logits, said.logits) > 1e-6
        assert reader.say(ids, n_new_tokens=0).logits.equal(reader.say(ids, n_new_tokens=0).logits)


@each_hook
def test_both_changes_stand_at_every_hook_point(hook):
    reader = reader_of("llama", hook)
    ids = ids_of(reader)
    for change in (ABLATE, STEER):
        said = reader.say(ids, n_new_tokens=N_NEW, edit=reader.edit(ROW, change))
        logits, new_ids = by_hand(reader, ids, change)
        assert torch.allclose(said.logits, logits, rtol=1e-4, atol=1e-4)
        assert said.new_ids == new_ids


def test_a_change_is_exactly_what_the_latent_adds_and_its_unit_direction():
    reader = reader_of("llama")
    ids = ids_of(reader)
    x = reader.activations(ids)
    counted = reader.is_counted(ids, x)
    acts = reader.latent_acts(x)[..., ROW]
    assert torch.allclose(acts, RMS * core_acts(reader.core, x / RMS)[..., ROW])
    taken = x - reader.edit(ROW, ABLATE)(x, counted)
    assert torch.allclose(taken, acts[..., None] * reader.core.W_dec[ROW], atol=1e-5)
    assert torch.allclose(taken.norm(dim=-1), acts, atol=1e-5)
    added = reader.edit(ROW, STEER)(x, counted) - x
    assert torch.allclose(added.norm(dim=-1), torch.full(acts.shape, STEER.strength), atol=1e-4)
    assert torch.cosine_similarity(added[0, 0], reader.core.W_dec[ROW], dim=0) > 1 - 1e-5


def test_special_and_loud_tokens_count_for_no_latent_and_are_never_changed():
    reader = reader_of("llama")
    ids = torch.cat([torch.tensor([[0]]), ids_of(reader)], dim=1)
    x = reader.activations(ids)
    loudest = int(x[0, 1:].norm(dim=-1).argmax()) + 1
    limit = float(x[0].norm(dim=-1)[1:].sort().values[-2])
    reader = reader_of("llama", max_norm=limit)
    counted = reader.is_counted(ids, x)
    assert (~counted[0]).nonzero().flatten().tolist() == [0, loudest]
    for change in (ABLATE, STEER):
        changed = reader.edit(ROW, change)(x, counted)
        assert changed[0, [0, loudest]].equal(x[0, [0, loudest]])
        assert not changed[counted].equal(x[counted])


def test_steering_by_nothing_and_ablating_what_is_silent_change_no_bit():
    reader = reader_of("llama")
    silent = PromptReader(
        reader.loaded, reader.hook, core_of(random_sae(), [0, 3, 5], rms=1e6), reader.max_norm
    )
    ids = ids_of(reader)
    plain = reader.say(ids, n_new_tokens=N_NEW)
    assert not (silent.latent_acts(silent.activations(ids))[..., ROW] > 0).any()
    for who, change in ((silent, ABLATE), (reader, Steer(kind="steer", strength=0.0))):
        said = who.say(ids, n_new_tokens=N_NEW, edit=who.edit(ROW, change))
        assert said.logits.equal(plain.logits)
        assert said.new_ids == plain.new_ids
    assert divergence(plain.logits, plain.logits) == 0


def config_of(prompt, *, n_new_tokens=0, **data):
    shared = {name: value for name, value in tiny_config(Path("/m"), data=data).items() if name in SHARED}
    core = {"job": "job", "cycle": 0}
    given = {"kind": "prompt", "core": core, "prompt": prompt, "n_new_tokens": n_new_tokens}
    return PromptConfig.model_validate({**shared, **given})


SHARED = ("seed", "n_threads", "model", "data", "activations", "evaluation")


def test_a_prompt_is_read_as_the_contexts_were():
    loaded = tiny_loaded()
    (ids,) = tokenise([TEXT], loaded.tokenizer)
    assert read_prompt(loaded, config_of(TEXT)).tolist() == [ids]
    assert read_prompt(loaded, config_of(TEXT, prepend_bos=True)).tolist() == [[0, *ids]]
    assert read_prompt(loaded, config_of(f"<s>{TEXT}", prepend_bos=True)).tolist() == [[0, *ids]]


@pytest.mark.parametrize(("n_words", "n_new_tokens"), [(400, 0), (250, 20)])
def test_a_prompt_longer_than_the_models_context_is_refused_with_its_tokens(n_words, n_new_tokens):
    loaded = tiny_loaded()
    text = " a" * n_words
    (ids,) = tokenise([text], loaded.tokenizer)
    with pytest.raises(CycleFailed) as caught:
        read_prompt(loaded, config_of(text, n_new_tokens=n_new_tokens))
    assert (caught.value.failure, caught.value.param) == ("context_too_long", "prompt")
    assert f"is {len(ids)} tokens" in caught.value.message
    assert "at most 256" in caught.value.message

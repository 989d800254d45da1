"""Claims about special ids: exactly the positions that hold one are dropped, whatever a BOS is called."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dmsae.activations import Harvester
from dmsae.config import ActivationConfig, DataConfig
from dmsae.contexts import TokenRequest, read_in_memory
from dmsae.documents import PARTS, Document
from dmsae.errors import CycleFailed
from dmsae.hooks import resolve_hook
from dmsae.models import describe
from dmsae.sources import BuiltinText

N_EMBEDDINGS = 8


class OneDocument:
    """A text of one document, of the training part."""

    identity, is_ordered_by_hash = "one", True

    def __init__(self, text):
        self._text = text

    def check(self):
        pass

    def read(self, _skipped):
        yield Document(self._text, "0" * 64)


def tokenizer_of(words, **special):
    """Make a tokenizer that gives word i of `words` the id i."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def model_with(**ids):
    config = LlamaConfig(
        vocab_size=N_EMBEDDINGS,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        **ids,
    )
    return LlamaForCausalLM(config).eval()


def kept(loaded, text, *, prepend_bos, context_length):
    """Give the ids of the text's contexts and whether each is kept; at padding none is."""
    data = DataConfig(
        text=BuiltinText(source="builtin", name="python-topics"),
        context_length=context_length,
        prepend_bos=prepend_bos,
    )
    request = TokenRequest(loaded.tokenizer, data, loaded.special_ids, dict.fromkeys(PARTS))
    contexts = read_in_memory(OneDocument(text), request).parts["training"]
    config = ActivationConfig(layer=0)
    harvester = Harvester(loaded, resolve_hook(loaded, layer=0, hook="resid_post"), config)
    (batch,) = harvester.harvest(contexts)
    assert not batch.is_kept[~batch.is_token].any()
    return [
        [(int(i), bool(is_kept)) for i, is_kept, is_token in zip(*row, strict=True) if is_token]
        for row in zip(batch.input_ids, batch.is_kept, batch.is_token, strict=True)
    ]


def dropped(*ids):
    return [(i, False) for i in ids]


def taken(*ids):
    return [(i, True) for i in ids]


def test_a_tokenizer_without_special_tokens_drops_nothing_though_the_config_names_ids():
    """A Llama's config names 1 and 2 whatever the tokenizer is; here they are `cat` and `sat`."""
    model = model_with()
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    loaded = describe(model, tokenizer_of(["the", "cat", "sat", "on", "mat"]), revision="1")
    assert loaded.special_ids == ()
    found = kept(loaded, "the cat sat on the mat", prepend_bos=False, context_length=6)
    assert found == [taken(0, 1, 2, 3, 0, 4)]
    with pytest.raises(CycleFailed, match="no BOS") as caught:
        kept(loaded, "the cat sat", prepend_bos=True, context_length=6)
    assert caught.value.param == "data.prepend_bos"


def test_one_bos_is_dropped_where_it_was_put_and_where_the_text_holds_it():
    tokenizer = tokenizer_of(["<s>", "the", "cat", "sat"], bos_token="<s>")
    loaded = describe(model_with(bos_token_id=0, eos_token_id=None), tokenizer, revision="1")
    assert loaded.special_ids == (0,)
    text = "the cat <s> sat the cat"
    assert kept(loaded, text, prepend_bos=False, context_length=6) == [
        taken(1, 2) + dropped(0) + taken(3, 1, 2)
    ]
    assert kept(loaded, text, prepend_bos=True, context_length=4) == [
        dropped(0) + taken(1, 2) + dropped(0),
        dropped(0) + taken(3, 1, 2),
    ]


def test_an_unusual_bos_is_dropped_and_the_ids_that_are_usually_special_are_not():
    tokenizer = tokenizer_of(["the", "cat", "sat", "on", "mat", "<start>"], bos_token="<start>")
    model = model_with(bos_token_id=0, eos_token_id=[1, 2], pad_token_id=None)
    loaded = describe(model, tokenizer, revision="1")
    assert loaded.special_ids == (5,)
    text = "the cat sat on the mat"
    assert kept(loaded, text, prepend_bos=False, context_length=8) == [taken(0, 1, 2, 3, 0, 4)]
    assert kept(loaded, text, prepend_bos=True, context_length=4) == [
        dropped(5) + taken(0, 1, 2),
        dropped(5) + taken(3, 0, 4),
    ]


def test_one_token_that_begins_and_ends_texts_is_dropped_in_both_places():
    end = "<|endoftext|>"
    tokenizer = tokenizer_of(["the", "cat", "sat", end], bos_token=end, eos_token=end, unk_token=end)
    loaded = describe(model_with(bos_token_id=3, eos_token_id=3), tokenizer, revision="1")
    assert loaded.special_ids == (3,)
    text = f"the cat {end} sat the"
    assert kept(loaded, text, prepend_bos=False, context_length=5) == [taken(0, 1) + dropped(3) + taken(2, 0)]
    assert kept(loaded, text, prepend_bos=True, context_length=6) == [
        dropped(3) + taken(0, 1) + dropped(3) + taken(2, 0)
    ]


def test_an_id_of_the_config_counts_where_the_tokenizer_has_no_token():
    tokenizer = tokenizer_of(["the", "cat", "sat"])
    loaded = describe(model_with(bos_token_id=0, eos_token_id=5, pad_token_id=7), tokenizer, revision="1")
    assert loaded.special_ids == (5, 7)


def test_ids_that_were_given_are_dropped_and_no_others():
    tokenizer = tokenizer_of(["<s>", "the", "cat", "sat"], bos_token="<s>")
    loaded = describe(model_with(), tokenizer, revision="1", special_ids=[3, 2, 3])
    assert loaded.special_ids == (2, 3)
    found = kept(loaded, "the cat <s> sat the", prepend_bos=False, context_length=5)
    assert found == [taken(1) + dropped(2) + taken(0) + dropped(3) + taken(1)]
    assert describe(model_with(), tokenizer, revision="1", special_ids=[]).special_ids == ()


def test_an_id_beyond_the_embeddings_is_refused_with_the_ids_that_there_are():
    tokenizer = tokenizer_of(["the", "cat"])
    with pytest.raises(CycleFailed, match="holds 8: this model has ids 0 to 7") as caught:
        describe(model_with(), tokenizer, revision="1", special_ids=[1, 8])
    assert (caught.value.failure, caught.value.param) == ("spec_unsupported", "activations.special_ids")


def test_padding_is_dropped_though_it_bears_the_id_of_a_word():
    tokenizer = tokenizer_of(["the", "cat", "sat"])
    loaded = describe(model_with(), tokenizer, revision="1")
    assert loaded.special_ids == ()
    found = kept(loaded, "the cat sat the cat", prepend_bos=False, context_length=3)
    assert found == [taken(0, 1, 2), taken(0, 1)]

"""Claims about which kept tokens are measured on: exactly as many as asked for, the first or spread out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dmsae.activations import ContextBatch
from dmsae.splicing import spread_kept, take_kept

N_COLUMNS = 6
LENGTHS = st.lists(st.integers(0, N_COLUMNS), min_size=1, max_size=40)


def batches_of(lengths: list[int], *, n_contexts: int = 3) -> list[ContextBatch]:
    """Give contexts of so many kept tokens, each a document; ids count the tokens, activations are none."""
    is_kept = torch.arange(N_COLUMNS) < torch.tensor(lengths)[:, None]
    input_ids = torch.arange(is_kept.numel()).view(is_kept.shape)
    documents = torch.arange(len(lengths))[:, None].expand(is_kept.shape)
    whole = ContextBatch(input_ids, is_kept, documents, torch.zeros(*is_kept.shape, 1), is_kept)
    return [
        ContextBatch(*(field[start : start + n_contexts] for field in whole))
        for start in range(0, len(lengths), n_contexts)
    ]


def kept_ids(batches) -> list[int]:
    return [token for batch in batches for token in batch.input_ids[batch.is_kept].tolist()]


@given(LENGTHS, st.integers(1, 300))
def test_the_first_kept_tokens_are_taken_and_no_more(lengths, n_tokens):
    batches = batches_of(lengths)
    assert kept_ids(take_kept(batches, n_tokens)) == kept_ids(batches)[:n_tokens]


@given(LENGTHS, st.integers(1, 300))
def test_spread_tokens_are_as_many_as_asked_for_in_their_old_order(lengths, n_tokens):
    batches = batches_of(lengths)
    everything, found = kept_ids(batches), kept_ids(spread_kept(batches, n_tokens))
    assert len(found) == min(n_tokens, len(everything))
    assert found == sorted(found)
    assert set(found) <= set(everything)


@given(st.integers(2, 10), st.integers(1, 4))
def test_tokens_are_spread_over_the_whole_part_one_context_in_so_many(n_wanted, stride):
    lengths = [N_COLUMNS] * (n_wanted * stride)
    spread = spread_kept(batches_of(lengths), n_wanted * N_COLUMNS)
    documents = [int(row[0]) for batch in spread for row in batch.document_index]
    assert documents == [stride * place for place in range(n_wanted)]

"""Snippets of a latent: as a plain list of all its firings, sorted, says; and within their bytes."""

import gzip
import json
import math
from fractions import Fraction
from itertools import groupby

import pytest
import torch
from pydantic import ValidationError

from dmsae import snippet_files
from dmsae.activations import ContextBatch
from dmsae.config import MOST_RECORD_BYTES, SnippetConfig
from dmsae.errors import NotFound
from dmsae.logit_lens import LogitLens, TokenValue
from dmsae.service import snippets as stored_snippets
from dmsae.service.objects import BytesDiffer
from dmsae.service.snippets import SnippetPlace, read_snippets
from dmsae.snippet_files import pack_record, write_snippets
from dmsae.snippets import LatentFirings, Snippet, read_firings
from dmsae.token_texts import TokenTexts
from tests.spliced import D_MODEL, in_batches, random_sae
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

RMS = 3.0
ROWS = [5, 0, 17, 23]
CONFIG = SnippetConfig(strongest=4, per_decile=2, context=3)
LENS = LogitLens(
    "folded", [TokenValue("<script>alert(1)</script>", 1.23456)], [TokenValue("\x00\u20ac", -2.0)]
)


@pytest.fixture(scope="module")
def batch():
    """Forty contexts: some padded, with documents that end in their midst, some of them another part's."""
    generator = torch.Generator().manual_seed(4)
    shape = (40, 12)
    lengths = torch.randint(4, 13, (40, 1), generator=generator)
    is_token = torch.arange(12) < lengths
    document = torch.arange(40)[:, None] * 2 + (torch.arange(12) >= 7).long()
    document[3, 7:] = -1
    is_kept = is_token & (document >= 0) & (torch.rand(shape, generator=generator) < 0.9)
    activations = RMS * torch.randn(*shape, D_MODEL, generator=generator)
    activations[~is_token] = math.nan
    input_ids = torch.randint(3, VOCAB_SIZE, shape, generator=generator)
    return ContextBatch(input_ids, is_token, document, activations, is_kept)


def read(batches, *, rows=ROWS, seed=7, config=CONFIG, sae=None):
    readers = read_firings(batches, sae or random_sae(), rows, rms=RMS, seed=seed)
    return [reader.read(config) for reader in readers]


def plain_acts(batch, row):
    """Activation of a latent at every position, None where it is not kept."""
    acts = random_sae().encode(batch.activations / RMS)[..., row].tolist()
    pairs = zip(acts, batch.is_kept.tolist(), strict=True)
    return [[act if k else None for act, k in zip(*pair, strict=True)] for pair in pairs]


def plain_decile(act, low, high):
    share = Fraction(act) - Fraction(low)
    return max(1, math.ceil(10 * share / (Fraction(high) - Fraction(low))))


def plain_window(batch, acts, place):
    """The token ids, activations and peak that belong around a place: row, column."""
    row, column = place
    about = list(zip(batch.is_token[row].tolist(), batch.document_index[row].tolist(), strict=True))
    start = end = column
    while start > 0 and about[start - 1] == about[column] and column - start < CONFIG.context:
        start -= 1
    while end + 1 < len(about) and about[end + 1] == about[column] and end - column < CONFIG.context:
        end += 1
    return batch.input_ids[row, start : end + 1].tolist(), acts[row][start : end + 1], column - start


def near(acts, others):
    return all(
        (one is None and other is None) or one == pytest.approx(other, abs=1e-5)
        for one, other in zip(acts, others, strict=True)
    )


def test_every_figure_and_snippet_is_what_the_list_of_all_firings_says(batch):
    for row, found in zip(ROWS, read([batch]), strict=True):
        acts = plain_acts(batch, row)
        firings = {(r, c): act for r, row_acts in enumerate(acts) for c, act in enumerate(row_acts) if act}
        low, high = min(firings.values()), max(firings.values())
        deciles = {place: plain_decile(act, low, high) for place, act in firings.items()}
        assert (found.n_tokens, found.n_firings) == (int(batch.is_kept.sum()), len(firings))
        assert [found.low, found.high] == pytest.approx([low, high], abs=1e-5)
        counts = [list(deciles.values()).count(decile) for decile in range(1, 11)]
        assert found.n_firings_of_deciles == counts

        by_context = groupby(firings, key=lambda place: place[0])
        peaks = [max(places, key=lambda place: (firings[place], -place[1])) for _, places in by_context]
        strongest = sorted(peaks, key=lambda place: -firings[place])[: CONFIG.strongest]
        shown = [snippet for snippet in found.snippets if snippet.kind == "strongest"]
        for place, snippet in zip(strongest, shown, strict=True):
            token_ids, window, peak = plain_window(batch, acts, place)
            assert (snippet.token_ids, snippet.peak, snippet.decile) == (token_ids, peak, deciles[place])
            assert near(snippet.activations, window)

        windows = {str(plain_window(batch, acts, place)[::2]): place for place in firings}
        drawn = [snippet for snippet in found.snippets if snippet.kind == "random"]
        places = [windows[str((snippet.token_ids, snippet.peak))] for snippet in drawn]
        assert len(set(places) | set(strongest)) == len(places) + len(strongest)
        assert all(deciles[place] == s.decile for place, s in zip(places, drawn, strict=True))
        free = [deciles[place] for place in firings if place not in strongest]
        assert sorted(deciles[place] for place in places) == sorted(
            decile for decile in range(1, 11) for _ in range(min(CONFIG.per_decile, free.count(decile)))
        )


def test_a_latents_snippets_depend_on_the_seed_alone_not_on_batches_or_other_rows(batch, monkeypatch):
    whole = read([batch])
    assert read([batch]) == whole
    assert chosen(read(in_batches(batch, 7))) == chosen(whole)
    assert chosen(read([batch], rows=ROWS[2:3])) == chosen(whole[2:3])
    monkeypatch.setattr("dmsae.snippets.BLOCK_BYTES", 1)
    assert chosen(read([batch])) == chosen(whole)
    assert chosen(read([batch], seed=8)) != chosen(whole)


def chosen(found):
    """What was chosen, without the last bits of activations, which the shape of a product moves."""
    return [
        (each.n_firings_of_deciles, [(s.kind, s.decile, s.token_ids, s.peak) for s in each.snippets])
        for each in found
    ]


def test_over_many_seeds_every_firing_of_a_decile_is_drawn(batch):
    only = SnippetConfig(strongest=0, per_decile=1, context=0)
    n_firings = read([batch], rows=ROWS[:1])[0].n_firings_of_deciles
    decile = next(decile for decile, n in enumerate(n_firings, 1) if 4 <= n <= 10)
    drawn = {
        str((snippet.token_ids, snippet.activations))
        for seed in range(100)
        for snippet in read([batch], rows=ROWS[:1], seed=seed, config=only)[0].snippets
        if snippet.decile == decile
    }
    assert len(drawn) == n_firings[decile - 1]


def test_a_latent_that_never_fires_or_always_alike_is_shown_as_such(batch):
    sae = random_sae()
    sae.threshold[0] = 1e9
    sae.W_enc[:, 1], sae.b_enc[1], sae.threshold[1] = 0.0, 0.5, 0.1
    silent, constant = read([batch], rows=[0, 1], sae=sae)
    assert silent == LatentFirings(silent.n_tokens, 0, 0.0, 0.0, [0] * 10, [])
    assert (constant.n_firings, constant.low, constant.high) == (constant.n_tokens, 0.5, 0.5)
    assert constant.n_firings_of_deciles == [0] * 9 + [constant.n_tokens]


class Store:
    """An object store that holds the files of a folder and gives ranges of them."""

    def __init__(self, folder):
        self.folder, self.n_bytes = folder, 0

    def read_range(self, key, start, n_bytes):
        content = (self.folder / key).read_bytes()[start : start + n_bytes]
        self.n_bytes += len(content)
        return content


def pack(found, latent_id, most_bytes=64 << 10):
    texts = TokenTexts(tiny_tokenizer())
    return pack_record(found, LENS, latent_id=latent_id, texts=texts, most_bytes=most_bytes)


def place_of(core_index, latent_id):
    return SnippetPlace(latent_id, "core_1", "job_1", 0, core_index, "latents.jsonl.gz", "places.txt")


def test_one_latents_record_is_read_without_the_others_and_says_what_was_measured(batch, tmp_path):
    found = read([batch])
    names = [f"job_1.0.{row}" for row in ROWS]
    write_snippets(tmp_path, [*(pack(each, name) for each, name in zip(found, names, strict=True)), b""])
    store = Store(tmp_path)
    for index, (firings, name) in enumerate(zip(found, names, strict=True)):
        record = read_snippets(store, place_of(index, name))
        assert record.density == firings.n_firings / firings.n_tokens
        assert (record.min_activation, record.max_activation) == (firings.low, firings.high)
        assert record.logit_lens.promoted[0].token == "<script>alert(1)</script>"
        assert (record.logit_lens.promoted[0].value, record.logit_lens.suppressed[0].token) == (
            1.235,
            "\0\u20ac",
        )
        assert [decile.decile for decile in record.deciles] == list(range(10, 0, -1))
        assert (record.deciles[0].high, record.deciles[-1].low) == (firings.high, firings.low)
        told = [(decile.decile, s.kind, len(s.tokens)) for decile in record.deciles for s in decile.snippets]
        assert sorted(told) == sorted((s.decile, s.kind, len(s.token_ids)) for s in firings.snippets)
        best = record.deciles[0].snippets[0]
        assert best.activations[best.peak] == pytest.approx(firings.high, rel=1e-3)
    assert store.n_bytes == (tmp_path / "latents.jsonl.gz").stat().st_size + 4 * 2 * 17
    with pytest.raises(NotFound, match="budget_bytes"):
        read_snippets(store, place_of(4, "job_1.0.9"))
    lines = gzip.decompress((tmp_path / "latents.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["latent_id"] for line in lines] == names


def test_what_no_trainer_writes_is_refused_not_shown(batch, tmp_path):
    (found,) = read([batch], rows=ROWS[:1])
    packed = pack(found, "job_1.0.5")
    write_snippets(tmp_path, [packed, gzip.compress(b"[]"), gzip.compress(b" " * 2_000_000)])
    store = Store(tmp_path)
    for core_index, latent_id in ((0, "job_1.0.6"), (1, "job_1.0.5"), (2, "job_1.0.5"), (3, "job_1.0.5")):
        with pytest.raises(BytesDiffer):
            read_snippets(store, place_of(core_index, latent_id))
    (tmp_path / "latents.jsonl.gz").write_bytes(packed[:40] + b"\1" + packed[41:])
    with pytest.raises(BytesDiffer):
        read_snippets(store, place_of(0, "job_1.0.5"))
    for places in ("-00000000000000" * 3, "x" * 34, f"{5:016d}\n{3:016d}\n", f"{0:016d}\n{10**9:016d}\n"):
        (tmp_path / "places.txt").write_text(places)
        with pytest.raises(BytesDiffer):
            read_snippets(store, place_of(0, "job_1.0.5"))


def test_where_bytes_are_short_random_snippets_go_first_then_the_weaker_ones_then_all(batch):
    (found,) = read([batch], rows=ROWS[:1])
    whole = len(pack(found, "job_1.0.5"))
    n_before = len(found.snippets) + 1
    for most_bytes in range(whole, 0, -8):
        packed = pack(found, "job_1.0.5", most_bytes)
        assert len(packed) <= most_bytes
        if not packed:
            break
        shown = [s for decile in json.loads(gzip.decompress(packed))["deciles"] for s in decile["snippets"]]
        kinds = [snippet["kind"] for snippet in shown]
        assert len(kinds) <= n_before
        assert kinds.count("strongest") == CONFIG.strongest or "random" not in kinds
        n_before = len(kinds)
    assert n_before == 0


def test_a_cycles_bytes_stay_within_their_budget_whatever_the_core():
    for budget in (0, 100, 10_000, 2**20, 2**25):
        config = SnippetConfig(budget_bytes=budget)
        for n_latents in (1, 7, 500, 100_000):
            each = config.latent_bytes(n_latents)
            assert 0 <= each <= MOST_RECORD_BYTES
            assert each == 0 or n_latents * each + config.place_bytes(n_latents) <= budget
    assert (
        SnippetConfig(budget_bytes=100).latent_bytes(7) == SnippetConfig(budget_bytes=0).latent_bytes(1) == 0
    )
    with pytest.raises(ValidationError, match="budget_bytes"):
        SnippetConfig(budget_bytes=-1)


def test_the_longest_record_that_settings_allow_is_cut_to_what_readers_take():
    ids = list(range(3, 104))
    acts = [1.234567e-30 * index for index in range(101)]
    kinds = ["strongest"] * 20 + ["random"] * 100
    shown = [
        Snippet(kind, 1 + index % 10, ids[index:] + ids[:index], acts, 50) for index, kind in enumerate(kinds)
    ]
    found = LatentFirings(10**9, 10**8, 1e-3, 9.0, [10**7] * 10, shown)
    assert 0 < len(pack(found, "job_1.0.5")) <= MOST_RECORD_BYTES
    assert snippet_files.MOST_BYTES == stored_snippets.MOST_BYTES
    assert f"snippets/{snippet_files.RECORDS}" == stored_snippets.RECORDS
    assert f"snippets/{snippet_files.PLACES}" == stored_snippets.PLACES

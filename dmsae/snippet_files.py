"""How do the snippets of a core lie on disk, so that one latent's can be read without the others?

`snippets/latents.jsonl.gz` holds a gzip member for each latent of the core, in its order: one line of JSON.
So `zcat` shows them all, and what lies between two places can be unpacked by itself. `snippets/places.txt`
says in 16 digits a line where each member begins, and last where the file ends. Two equal places: the byte
budget left no room for this latent.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dmsae.logit_lens import LogitLens
from dmsae.snippets import N_DECILES, LatentFirings, Snippet
from dmsae.token_texts import TokenTexts

RECORDS, PLACES = "latents.jsonl.gz", "places.txt"
MOST_BYTES = 512 << 10
"""Of one record, unpacked."""


def pack_record(
    firings: LatentFirings, lens: LogitLens, *, latent_id: str, texts: TokenTexts, most_bytes: int
) -> bytes:
    """Give one latent's record, compressed, with as many of its snippets as fit; empty where nothing does."""
    shown = [_show(snippet, texts) for snippet in firings.snippets]
    for n_snippets in _fewer(firings):
        record = {
            "latent_id": latent_id,
            "n_tokens": firings.n_tokens,
            "n_firings": firings.n_firings,
            "density": firings.n_firings / firings.n_tokens,
            "min_activation": firings.low,
            "max_activation": firings.high,
            "logit_lens": {
                "final_norm": lens.final_norm,
                "promoted": [_rounded(entry._asdict()) for entry in lens.promoted],
                "suppressed": [_rounded(entry._asdict()) for entry in lens.suppressed],
            },
            "deciles": list(_deciles(firings, shown[:n_snippets])),
        }
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        content = line.encode()
        packed = gzip.compress(content, mtime=0)
        if len(content) <= MOST_BYTES and len(packed) <= most_bytes:
            return packed
    return b""


def write_snippets(folder: Path, records: Iterable[bytes]) -> None:
    """Write packed records, in the order of the core, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [0]
    with (folder / RECORDS).open("wb") as file:
        for record in records:
            file.write(record)
            places.append(places[-1] + len(record))
    (folder / PLACES).write_text("".join(f"{place:016d}\n" for place in places), encoding="ascii")


def _fewer(firings: LatentFirings) -> Iterator[int]:
    """Count down how many of the snippets to keep: ten random ones fewer, then half of the strongest."""
    n_strongest = sum(snippet.kind == "strongest" for snippet in firings.snippets)
    yield len(firings.snippets)
    yield from range(len(firings.snippets) - N_DECILES, n_strongest, -N_DECILES)
    while n_strongest > 0:
        yield n_strongest
        n_strongest //= 2
    if firings.snippets:
        yield 0


def _deciles(firings: LatentFirings, shown: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give the deciles, the strongest first; none where the latent never fires."""
    if firings.n_firings == 0:
        return
    low, width = firings.low, (firings.high - firings.low) / N_DECILES
    for decile in range(N_DECILES, 0, -1):
        own = [entry for entry in shown if entry["decile"] == decile]
        yield {
            "decile": decile,
            "from": low + (decile - 1) * width,
            "to": firings.high if decile == N_DECILES else low + decile * width,
            "n_firings": firings.n_firings_of_deciles[decile - 1],
            "snippets": [{name: value for name, value in entry.items() if name != "decile"} for entry in own],
        }


def _show(snippet: Snippet, texts: TokenTexts) -> dict[str, Any]:
    return {
        "kind": snippet.kind,
        "decile": snippet.decile,
        "tokens": [texts.of(token_id) for token_id in snippet.token_ids],
        "activations": [None if act is None else _four_digits(act) for act in snippet.activations],
        "peak": snippet.peak,
    }


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "value": _four_digits(entry["value"])}


def _four_digits(value: float) -> float:
    """Keep four digits: more tell a reader nothing, and cost bytes."""
    return float(f"{value:.4g}")

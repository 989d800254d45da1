"""How does a finished cycle become a folder that Neuronpedia imports?

Rows of its own tables, the same latents as batches of SAEDashboard, and beside both the SAE as SAELens opens
it. What stands in a row is left to `neuronpedia_rows.py`. No model is loaded and no torch.

Source: the folders of https://docs.neuronpedia.org/api-and-data/exports, as
`sae_dashboard/neuronpedia/neuronpedia_export.py` (jbloomAus/SAEDashboard, commit 3ea1249) lays them out.
"""

import gzip
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dmsae.errors import DmsaeError, FieldProblem, InvalidConfig
from dmsae.neuronpedia_rows import (
    Described,
    Row,
    Source,
    activation_rows,
    dashboard_latent,
    describe,
    latent_row,
    rows_about,
)

DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""Whose rows they are said to be, unless somebody is named: what SAEDashboard's own export falls back to."""
LATENTS_PER_BATCH = 256
NEEDED = ("sae/cfg.json", "sae/sae_weights.safetensors", "spec.json")
"""What is read of a cycle, beside its texts."""
RECORDS = "snippets/latents.jsonl.gz"
SET_KINDS = {"resid_post": "res", "mlp_out": "mlp", "attn_out": "att"}
"""How names of source sets there say where activations are taken."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Exported(NamedTuple):
    """What an export left."""

    source_folder: Path
    """`MODEL/SOURCE`, to lie beneath `v1/` of the bucket that an instance imports from."""
    n_latents: int
    n_texts: int
    n_left_out: int
    """Core latents of which the cycle stored no record, for want of room in its byte budget."""


@dataclass(frozen=True)
class Names:
    """What Neuronpedia calls a model, a set of SAEs and their maker; None: as the cycle's own facts say."""

    model_id: str | None = None
    source_set: str | None = None
    creator_id: str = DEFAULT_CREATOR_ID


def export_neuronpedia(cycle: Path, folder: Path, *, names: Names) -> Exported:
    """Write the core that a finished cycle selected into a fresh folder.

    `cycle` is what the cycle stored, as the trainer left it or `pull` brought it. In `folder` then lie
    `MODEL/SOURCE/`, which Neuronpedia imports, `saedashboard/batch-N.json`, and `sae/`.

    Raises:
        DmsaeError: the cycle stored no texts or is not whole, or the folder holds anything already.
        InvalidConfig: names that Neuronpedia cannot have, or a local model without a name there.
    """
    _require_whole(cycle)
    source = open_source(cycle, names)
    rows_of = {latent_id: index for index, latent_id in source.facts["selected"]}
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DmsaeError(f"folder = {str(folder)!r}: must be empty before it is written")
    place = folder / source.model_id / source.id
    for name in ("features", "activations"):
        (place / name).mkdir(parents=True)
    (folder / "saedashboard").mkdir()
    shutil.copytree(cycle / "sae", folder / "sae")
    for name, row in rows_about(source).items():
        (place / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
    n_latents = n_texts = 0
    records = read_records(cycle / RECORDS)
    for number, batch in enumerate(_batches(records, LATENTS_PER_BATCH)):
        latents = [describe(record, rows_of[record["latent_id"]], source) for record in batch]
        _write_batch(folder, place, number, latents, source=source)
        n_latents += len(latents)
        n_texts += sum(len(latent.texts) for latent in latents)
    return Exported(place, n_latents, n_texts, len(rows_of) - n_latents)


def open_source(cycle: Path, names: Names) -> Source:
    """Read what a cycle says of its SAE, and name it.

    Raises:
        InvalidConfig: names that Neuronpedia cannot have, or a local model without a name there.
    """
    config, spec = _read(cycle / "sae" / "cfg.json"), _read(cycle / "spec.json")
    facts, settings = config["metadata"], spec["config"]
    taken, text = settings["activations"], settings["data"]["text"]
    hook = taken.get("hook", "resid_post")
    set_name = f"{SET_KINDS[hook]}-dmsae-{facts['job_id']}-{facts['cycle_index']}"
    model_id = names.model_id or _model_name(facts["model"])
    for param, value in (("model_id", model_id), ("source_set", names.source_set or set_name)):
        if not NAME.fullmatch(value):
            rule = (
                "must be of letters, digits, '.', '_' and '-', at most 128, and begin with one of the former"
            )
            raise InvalidConfig([FieldProblem(param, value[:200], rule)])
    return Source(
        model_id=model_id,
        source_set=names.source_set or set_name,
        creator_id=names.creator_id,
        layer=taken["layer"],
        hook=hook,
        dataset=text["id"] if text["source"] == "hub" else None,
        config=config,
    )


def read_records(file: Path) -> Iterator[Row]:
    """Go through what a cycle stored of its core's latents.

    Raises:
        DmsaeError: the file is torn.
    """
    try:
        with gzip.open(file) as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DmsaeError(f"{file}: is torn; pull the job again.") from error


def _write_batch(
    folder: Path, place: Path, number: int, latents: Sequence[Described], *, source: Source
) -> None:
    rows = [latent_row(latent, source) for latent in latents]
    texts = [row for latent in latents for row in activation_rows(latent, source)]
    _write_rows(place / "features" / f"batch-{number}.jsonl.gz", rows)
    if texts:
        _write_rows(place / "activations" / f"batch-{number}.jsonl.gz", texts)
    batch = {
        "model_id": source.model_id,
        "layer": source.layer,
        "sae_set": source.source_set,
        "features": [dashboard_latent(latent, source) for latent in latents],
    }
    file = folder / "saedashboard" / f"batch-{number}.json"
    file.write_text(json.dumps(batch, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows of the same columns each: the import reads these off the first."""
    file.write_bytes(gzip.compress("".join(map(_line, rows)).encode(), mtime=0))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _batches(records: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(records, size)):
        yield batch


def _model_name(model: Row) -> str:
    """Give the last part of a hub's id, or a builtin model's name, in small letters.

    Raises:
        InvalidConfig: a local model's path says nothing.
    """
    if model["source"] == "local":
        rule = "is required for a model on a worker's disk: what does Neuronpedia call it?"
        raise InvalidConfig([FieldProblem("model_id", None, rule, "missing_field")])
    name: str = model["id"].rsplit("/", 1)[-1] if model["source"] == "hub" else model["name"]
    return name.lower()


def _read(file: Path) -> Row:
    found: Row = json.loads(file.read_bytes())
    return found


def _require_whole(cycle: Path) -> None:
    """Refuse a cycle of which something is missing.

    Raises:
        DmsaeError: naming it.
    """
    missing = [name for name in NEEDED if not (cycle / name).is_file()]
    if missing:
        raise DmsaeError(f"cycle = {str(cycle)!r}: holds no {', '.join(missing)}")
    if not (cycle / RECORDS).is_file():
        raise DmsaeError(
            f"cycle = {str(cycle)!r}: stored no texts of its core ({RECORDS}): there is nothing to show. "
            "A cycle stores some where snippets.budget_bytes is above 0."
        )
